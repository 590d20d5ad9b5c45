"""The model's Markdown, read and split for the chat apps.

Each app's `formatting` writes it in the app's own markup, in messages that the app takes. It is total:
whatever the model wrote, and however much of it is there already, every part is valid by itself, within the
limit, and shows something; all parts together show the words of `visible`, in order. Only a word longer than
a message is cut.
"""

import re

from june.chat.formatting.markdown import read

__all__ = ["escape", "visible"]


def visible(markdown: str) -> str:
    """Return the plain text that a reader should see, with "• " or a number before each list item."""
    return read(markdown).text


def escape(text: str) -> str:
    """Return Markdown that shows one line of text literally.

    Every ASCII punctuation character may be escaped: https://spec.commonmark.org/0.31.2/#backslash-escapes.
    """
    return re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)
