"""What june asks of llama.cpp without a model in memory; the library is loaded for `gpu_use` only."""

import math
from collections.abc import Iterable

from june.hardware import Gpu
from june.llm import GpuUse, Needs
from june.llm.llama_cpp import needs, state_files
from june.llm.llama_cpp.grammar import json_grammar
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.messages import JsonObject
from june.models import Model
from june.sections import LlmSettings

SMALLER = "lower llm.llama_cpp.kv_tokens"


class UnloadedLlamaCpp:
    """`Unloaded` of llama.cpp."""

    def __init__(self, settings: LlmSettings, own: LlamaCppSettings = DEFAULTS) -> None:
        self._settings = settings
        self._own = own

    def gpu_use(self) -> GpuUse:
        """Return whether llama.cpp was built for a GPU, and may compute on one."""
        is_wanted = self._own.gpu_layers != 0
        if self._offload_supported():
            return GpuUse(is_wanted=is_wanted)
        return GpuUse(
            "llama.cpp was built without CUDA",
            'Build it anew: CMAKE_ARGS="-DGGML_CUDA=on" make clean install.',
            is_wanted,
        )

    def gpu_bytes(self, model: Model) -> int:
        """Return what weights, work space and one context take on a GPU."""
        return needs.gpu_bytes(model, self._settings.context_tokens, self._own)

    def needs(self, model: Model, gpus: tuple[Gpu, ...]) -> Needs:
        """Return what weights and cache take; see the Protocol."""
        offload_supported = bool(gpus) and self._offload_supported()
        needs.require_gpu(model, self._settings, self._own, gpus, offload_supported=offload_supported)
        offloaded = offload_supported and self._own.gpu_layers != 0
        tokens = needs.kv_budget_tokens(model, self._settings, self._own, gpus, offloaded=offloaded)
        if offloaded:
            return Needs(
                gpu_bytes=needs.gpu_bytes(model, tokens, self._own), cache_tokens=tokens, remedy=SMALLER
            )
        ram_bytes = model.size_bytes + needs.kv_bytes(model, tokens, self._own)
        return Needs(ram_bytes, cache_tokens=tokens, remedy=SMALLER)

    def require_schema(self, schema: JsonObject) -> None:
        """Return if a grammar can be made from the schema; see the Protocol."""
        json_grammar(schema)

    async def forget(self, *, conversations: Iterable[str] = (), older_than_s: float = math.inf) -> None:
        """Delete files in `llm.llama_cpp.state_dir`; see the Protocol."""
        if self._own.state_dir:
            await state_files.delete(
                self._own.state_dir, conversations=conversations, older_than_s=older_than_s
            )

    def _offload_supported(self) -> bool:
        from june.llm.llama_cpp.library import gpu_offload_supported  # noqa: PLC0415 - loads llama.cpp

        return gpu_offload_supported()
