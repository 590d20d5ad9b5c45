"""The models: what there is, which of them suit a machine, and whether their files are here and right.

`catalogue` holds those that june knows, `presets` chooses among them, `own` describes the owner's own files,
`hub` and `pull` download, `files` verifies.
"""

from june.models.catalogue import Catalogue, Model, ModelFile, load_catalogue
from june.models.files import find_faults, is_present, require
from june.models.presets import (
    GPU_LLMS,
    GPU_STT,
    GPU_TTS,
    STARTER,
    STT_WORKSPACE_BYTES,
    Choice,
    choose_preset,
)
from june.models.sources import Endpoint, LocalModel, Source

__all__ = [
    "GPU_LLMS",
    "GPU_STT",
    "GPU_TTS",
    "STARTER",
    "STT_WORKSPACE_BYTES",
    "Catalogue",
    "Choice",
    "Endpoint",
    "LocalModel",
    "Model",
    "ModelFile",
    "Source",
    "choose_preset",
    "find_faults",
    "is_present",
    "load_catalogue",
    "require",
]
