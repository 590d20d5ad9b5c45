"""The section `[llm.llama_cpp]`: what only this engine is told."""

from typing import Literal

from pydantic import Field

from june.sections import OptionalPath, Section


class LlamaCppSettings(Section):
    """llama.cpp in june's own process."""

    kv_tokens: int = Field(default=0, ge=0)
    """Cache of all conversations together, in tokens, never less than one context; 0: one context on the
    CPU, on a GPU one for each slot as far as half of its free memory goes."""
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    """Number format of the attention cache; q8_0 halves it and needs flash attention."""
    flash_attention: Literal["auto"] | bool = "auto"
    """Fused attention kernels; "auto": where llama.cpp has them."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: one for each core."""
    kernel: Literal["auto", "llama.cpp"] = "auto"
    """"auto": june's own, for attention and weights in Q8_0 and Q4_1, where the CPU allows them; "llama.cpp":
    never."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers computed on the GPU; -1: all."""
    gpu_partial: bool = False
    """Allow that a part of the layers stays on the CPU."""
    gpu_only_above_b: float = Field(default=8.0, gt=0)
    """A model with more billion parameters than this never loads on the CPU."""
    prefill_chunk_tokens: int = Field(default=256, ge=16, le=4096)
    """Prompt tokens evaluated at a time, of all conversations; running answers go on between chunks."""
    prefill_pause_s: float = Field(default=0.2, gt=0, le=10)
    """How long a chunk may hold up running answers, in seconds; it becomes smaller for that."""
    state_dir: OptionalPath = ""
    """Folder, relative to the settings file, for what the cache held of conversations that lost their place
    or were there when june ended: their history is not evaluated anew. Personal data; empty: none is kept."""
    state_max_gb: float = Field(default=2.0, gt=0)
    """Size of that folder in GB; the oldest are deleted first."""


DEFAULTS = LlamaCppSettings()
