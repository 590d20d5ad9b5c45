"""The section `[llm.llama_cpp]`: the settings that only this engine has."""

from typing import Literal

from pydantic import Field

from june.sections import OptionalPath, Section


class LlamaCppSettings(Section):
    """llama.cpp in june's own process."""

    kv_tokens: int = Field(default=0, ge=0)
    """Cache of all conversations together, in tokens, at least one context; 0: on the CPU one context, on a
    GPU one context for each slot, as far as half of its free memory allows."""
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    """Number format of the attention cache; q8_0 halves it and needs flash attention."""
    flash_attention: Literal["auto"] | bool = "auto"
    """Fused attention kernels; "auto": if llama.cpp has them."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads; 0: one for each core."""
    kernel: Literal["auto", "llama.cpp"] = "auto"
    """"auto": june's own kernels for attention and for weights in Q8_0 and Q4_1, if the CPU supports them;
    "llama.cpp": never."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers computed on the GPU; -1: all."""
    gpu_partial: bool = False
    """Allow some of the layers to stay on the CPU."""
    gpu_only_above_b: float = Field(default=8.0, gt=0)
    """Models with more billion parameters than this are never loaded on the CPU."""
    prefill_chunk_tokens: int = Field(default=256, ge=16, le=4096)
    """Prompt tokens of all conversations evaluated at a time; answers continue between these chunks."""
    prefill_pause_s: float = Field(default=0.2, gt=0, le=10)
    """How long a chunk may delay answers, in seconds; june makes chunks smaller to keep to it."""
    state_dir: OptionalPath = ""
    """Folder, relative to the settings file, for the cache of conversations that lost their place in it or
    were in it when june ended, so that their history is not evaluated again. Personal data; empty: none."""
    state_max_gb: float = Field(default=2.0, gt=0)
    """Maximum size of that folder in GB; the oldest files are deleted first."""


DEFAULTS = LlamaCppSettings()
