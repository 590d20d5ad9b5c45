"""The chat template that a model was trained on."""

from typing import Any

import jinja2

from june.errors import GenerationError, ModelLoadError
from june.llm.llama_cpp.library import Jinja2ChatFormatter, llama_cpp
from june.llm.llama_cpp.vocabulary import Vocabulary


class ChatTemplate:
    """`Template` by llama-cpp-python, which has Jinja render it in a sandbox.

    Args:
        source: the template.
        bos: what begins a text.
        eos: what ends one.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self._formatter = Jinja2ChatFormatter(source, bos_token=bos, eos_token=eos)

    def __call__(self, messages: list[dict[str, Any]], **keywords: Any) -> str:
        """Return the prompt.

        Raises:
            GenerationError: the template does not take such a conversation.
        """
        unchecked: list[Any] = messages
        try:
            return str(self._formatter(messages=unchecked, **keywords).prompt)
        except (jinja2.TemplateError, ValueError) as error:
            raise GenerationError(
                "llm_failed", f"The chat template failed: {type(error).__name__}."
            ) from None


def template_of(model: Any, name: str, vocabulary: Vocabulary) -> ChatTemplate:
    """Return the template that the model's file brings along.

    Raises:
        ModelLoadError: it brings none.
    """
    source = llama_cpp.llama_model_chat_template(model, None)
    if not source:
        raise ModelLoadError(f"Language model {name} has no chat template; choose an instruct model.")
    return ChatTemplate(source.decode(), bos=vocabulary.bos(), eos=vocabulary.eos())
