"""A conversation as the prompt that its model was trained on."""

from typing import Any

import jinja2
import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from june.errors import GenerationError, ModelLoadError
from june.llm.llama_cpp.vocabulary import Vocabulary
from june.messages import ChatRequest


class ChatTemplate:
    """The chat template that a model's file brings along.

    Raises:
        ModelLoadError: it brings none.
    """

    def __init__(self, model: Any, name: str, vocabulary: Vocabulary) -> None:
        template = llama_cpp.llama_model_chat_template(model, None)
        if not template:
            raise ModelLoadError(f"Language model {name} has no chat template; choose an instruct model.")
        self._vocabulary = vocabulary
        self._formatter = Jinja2ChatFormatter(
            template.decode(), eos_token=vocabulary.eos(), bos_token=vocabulary.bos()
        )

    def render(self, request: ChatRequest) -> str:
        """The prompt; what a person wrote cannot contain control tokens.

        Raises:
            GenerationError: the template does not take such a conversation.
        """
        messages: list[Any] = [
            {"role": each.role, "content": self._vocabulary.without_control_tokens(each.content)}
            for each in request.messages
        ]
        try:
            return str(self._formatter(messages=messages, enable_thinking=request.thinking).prompt)
        except (jinja2.TemplateError, ValueError) as error:
            raise GenerationError(
                "llm_failed", f"The chat template failed: {type(error).__name__}."
            ) from None
