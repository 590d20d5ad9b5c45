"""The questions and texts of `bench llm`."""

from itertools import count

import numpy as np

from june.bench.peers import Chat, Written
from june.messages import ChatMessage

SENTENCE_TOKENS = 16
"""Length of a sentence of `prose` in SmolLM2's vocabulary."""


class Talk:
    """Makes questions and texts: the same in every run, and without repetition in one run."""

    _FORMS = (
        "What do {} and {} have in common?",
        "How would you explain {} to someone who knows only {}?",
        "Tell me a short story with {} and {} in it.",
        "Which is older, {} or {}, and how do we know?",
        "Why do people who care about {} often care about {} too?",
        "What could I build with {} and {}?",
        "Give me advice on {} for a day full of {}.",
        "Who made {} and {} so well known?",
    )
    _THINGS = (
        *("tides", "glaciers", "bread", "violins", "comets", "bees", "volcanoes", "rainbows", "clocks"),
        *("bridges", "whales", "coffee", "chess", "lightning", "diamonds", "vaccines", "owls", "deserts"),
        *("bicycles", "paper", "tulips", "magnets", "yeast", "radar", "salt", "cheese", "fossils", "kites"),
    )
    _PLACES = ("harbor", "valley", "old mill", "station", "library", "market", "forest", "village")
    _DOINGS = ("counts", "paints", "sells", "studies", "collects", "repairs", "remembers", "draws")

    def __init__(self, system_prompt: str) -> None:
        self._system = ChatMessage("system", system_prompt)
        self._numbers = count()
        self._random = np.random.default_rng(7)

    def question(self) -> str:
        """Return a new question."""
        number = next(self._numbers)
        first, second = number // len(self._FORMS), number // len(self._FORMS) // len(self._THINGS) + 1
        things = (self._THINGS[index % len(self._THINGS)] for index in (first, first + second))
        return self._FORMS[number % len(self._FORMS)].format(*things)

    def prose(self, tokens: int) -> str:
        """Return a new text of about this many tokens."""
        sentences = [
            f"In the {self._pick(self._PLACES)} number {self._random.integers(10, 10_000)} a woman "
            f"{self._pick(self._DOINGS)} {self._pick(self._THINGS)} and {self._pick(self._THINGS)}."
            for _ in range(max(tokens // SENTENCE_TOKENS, 1))
        ]
        return " ".join(sentences)

    def ask(self, text: str, tokens: int, conversation: str = "") -> Chat:
        """Return the first turn of a conversation."""
        return Chat((self._system, ChatMessage("user", text)), tokens, conversation)

    def _pick(self, words: tuple[str, ...]) -> str:
        return words[int(self._random.integers(len(words)))]


def go_on(chat: Chat, answer: Written, text: str) -> Chat:
    """Return the next turn of a conversation."""
    turn = (ChatMessage("assistant", answer.text), ChatMessage("user", text))
    return Chat((*chat.messages, *turn), chat.tokens, chat.conversation)
