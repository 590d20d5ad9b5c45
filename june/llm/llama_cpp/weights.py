"""Weights in the number format that the CPU computes with fastest.

llama.cpp has fast kernels for a batch of tokens in some formats only. Where june's own do not run, a model
that comes in another one is converted at its first load, and the copy is kept beside the original.
"""

import ctypes
import os
from pathlib import Path

from june.llm.llama_cpp.library import llama_cpp
from june.telemetry import log

FORMATS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
CONVERTED = 0
"""What `llama_model_quantize` returns; all else is a failure."""


def converted(path: Path, number_format: str, *, threads: int) -> Path:
    """Return the file with the weights of `path` in another format; `path` itself if no copy can be made.

    The copy gets its name when it is complete, and is made anew if the original is younger.

    Args:
        path: a GGUF file.
        number_format: one of `FORMATS`.
        threads: threads that convert.
    """
    copy = path.with_suffix(f".as-{number_format}.gguf")
    _remove_partials(copy)
    if copy.is_file() and copy.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return copy
    partial = copy.with_suffix(f".{os.getpid()}.partial")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FORMATS[number_format]
    params.allow_requantize = True
    params.nthread = threads
    files = (os.fsencode(path), os.fsencode(partial))
    try:
        partial.touch()
        if llama_cpp.llama_model_quantize(*files, ctypes.byref(params)) == CONVERTED:
            partial.replace(copy)
            log.info("model.converted", file=copy.name)
            return copy
        reason = "llama.cpp refuses"
    except OSError as error:
        reason = str(error.strerror)
    finally:
        partial.unlink(missing_ok=True)
    log.warning("conversion.failed", file=path.name, number_format=number_format, detail=reason)
    return path


def _remove_partials(copy: Path) -> None:
    """Remove copies of processes that were killed while they converted; their number is in the name."""
    for partial in copy.parent.glob(f"{copy.stem}.*.partial"):
        process = partial.suffixes[-2].removeprefix(".")
        if not Path("/proc", process).exists():
            partial.unlink(missing_ok=True)
