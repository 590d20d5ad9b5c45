"""GPUs, the chosen models, and whether disk and memory have room for them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from june import hardware, lineup, llm
from june.checks import Finding
from june.errors import JuneError, SettingsError
from june.hardware import Gpu
from june.lineup import ChosenModels
from june.models import STT_WORKSPACE_BYTES, Endpoint, LocalModel, Source, require
from june.models.references import NotPulledError
from june.settings import Settings

PULLED_AT_START = "june pulls it when it starts (models.pull_at_start)."
LOW_DISK_BYTES = 2_000_000_000
"""For the store, its backups and logs, beside the models."""
LIBRARIES_BYTES = 550_000_000
"""Python, the engines' libraries and their work space: the 864 MB that `june bench` took at most with the
starter models, less their files (238 MB) and the cache of one context (94 MB)."""


def gpus() -> tuple[tuple[Gpu, ...], Finding | None]:
    """Return the GPUs, and a finding if the driver does not answer."""
    try:
        return hardware.find_gpus(), None
    except JuneError as error:
        remedy = "Restart the machine, or install the driver anew; nvidia-smi should list the GPU."
        return (), Finding("gpu", "failed", str(error), remedy)


def gpu_libraries(settings: Settings, found: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Yield each GPU, and whether the engines can compute on it."""
    if not found:
        yield Finding("gpu", "ok", "no NVIDIA GPU: the models compute on the CPU")
        return
    for gpu in found:
        yield Finding("gpu", "ok", f"{gpu.name}, {_gb(gpu.free_bytes)} of {_gb(gpu.total_bytes)} free")
    missing = hardware.missing_cuda_libraries()
    if missing and settings.stt.device != "cpu":
        remedy = "Install CUDA 12 (nvidia-cublas-cu12); until then speech to text uses the CPU."
        yield Finding("cuda, stt", "warning", f"not found: {', '.join(missing)}", remedy)
    try:
        use = llm.unloaded(settings.llm).gpu_use()
    except SettingsError:  # the choice of the models says what is wrong
        return
    if use.is_wanted and use.obstacle:
        yield Finding("cuda, llm", "warning", use.obstacle, use.remedy)


def chosen(settings: Settings) -> tuple[ChosenModels | None, Finding]:
    """Return the models that these settings choose on this machine."""
    try:
        found = lineup.choose_models(settings)
    except NotPulledError as error:
        fault, _, remedy = str(error).partition("; run: ")
        if settings.models.pull_at_start:
            return None, Finding("models", "warning", fault, PULLED_AT_START)
        return None, Finding("models", "failed", fault, remedy)
    except JuneError as error:
        return None, Finding(
            "models", "failed", str(error), "python -m june models list shows what there is."
        )
    return found, Finding("choice", "ok", found.reason)


def files(settings: Settings, models: ChosenModels) -> Iterator[Finding]:
    """Yield whether each model's files are here and the catalogue's."""
    for role, model in _roles(models):
        if isinstance(model, Endpoint):
            yield Finding(role, "ok", f"{model.name or 'a model'} of the backend's own, without files here")
            continue
        try:
            require(model.entry, model.folder)
        except JuneError as error:
            fault, _, remedy = str(error).partition("; run: ")
            if settings.models.pull_at_start and model.entry.can_be_pulled:
                yield Finding(role, "warning", fault, PULLED_AT_START)
            else:
                yield Finding(role, "failed", fault, remedy)
        else:
            is_known = any(file.sha256 for file in model.entry.files)
            yield Finding(role, "ok", f"{model.name}, {'present and verified' if is_known else 'your own'}")


def model_disk(settings: Settings, models: ChosenModels | None) -> Finding:
    """Return whether the models that are still to be pulled have room on their disk."""
    from june.models import pull  # noqa: PLC0415 - its HTTP client costs every start 0.1 s

    folder = settings.models.directory
    try:
        plan = pull.plan_pull([model.entry for model in models.local] if models else [], folder)
    except JuneError as error:
        remedy = "Let models.directory name a folder that june may write to."
        return Finding("disk", "failed", str(error), remedy)
    found = f"{_gb(plan.free_bytes)} free at {folder}"
    remedy = "Make room, or set models.directory to a larger disk."
    if plan.models:
        found = f"{found}, and the models still to pull take {_gb(plan.disk_bytes)}"
    if plan.free_bytes < plan.disk_bytes:
        return Finding("disk", "failed", found, remedy)
    if plan.free_bytes - plan.disk_bytes < LOW_DISK_BYTES:
        return Finding("disk", "warning", found, remedy)
    return Finding("disk", "ok", found)


def store_folder(path: Path) -> Finding:
    """Return whether the folder of the store can be written to, and has room."""
    folder = path.parent
    try:
        probe = folder / f".{path.name}.check"
        probe.touch()
        probe.unlink()
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = "Let store.path name a file in a folder that june may write to."
        return Finding("store", "failed", f"{folder} cannot hold june's messages: {error.strerror}", remedy)
    found = f"{path}, with {_gb(free_bytes)} free"
    if free_bytes < LOW_DISK_BYTES:
        return Finding("store", "warning", found, "Make room, or set store.path to a larger disk.")
    return Finding("store", "ok", found)


def memory(settings: Settings, models: ChosenModels | None, found: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Yield whether RAM, and the GPU's memory, hold the chosen models and their conversations' cache."""
    available_bytes = hardware.available_memory_bytes()
    has = f"{_gb(available_bytes)} of memory available, {hardware.cpu_cores()} cores"
    if models is None:
        yield Finding("memory", "ok", has)
        return
    try:
        lineup.require_context(models.llm, settings.llm)
    except JuneError as error:
        yield Finding("context", "failed", str(error), "Lower llm.context_tokens, or choose another model.")
    try:
        need = _need(settings, models, found)
    except JuneError as error:
        yield Finding("gpu memory", "failed", str(error), "Choose a smaller model, or free the GPU's memory.")
        return
    cache = ""
    if need.cache_tokens:
        cache = f" with {need.cache_tokens} tokens of cache for {settings.llm.slots} conversations"
    if need.gpu_bytes:
        gpu = max(found, key=lambda gpu: gpu.free_bytes)
        told = (
            f"{gpu.name} has {_gb(gpu.free_bytes)} free; the models there take {_gb(need.gpu_bytes)}{cache}"
        )
        remedy = f"End what else uses it (june itself, if it runs), {need.smaller}or take a smaller model."
        yield _enough("gpu memory", told, remedy, free_bytes=gpu.free_bytes, needed_bytes=need.gpu_bytes)
    remedy = f"End other programs, raise the container's limit, {need.smaller}or take a smaller model."
    told = f"{has}; june takes some {_gb(need.ram_bytes)}" + ("" if need.gpu_bytes else cache)
    yield _enough("memory", told, remedy, free_bytes=available_bytes, needed_bytes=need.ram_bytes)


@dataclass(frozen=True, slots=True)
class _Need:
    """What the chosen models take, by the same estimates as the choice of the preset."""

    cache_tokens: int
    gpu_bytes: int
    ram_bytes: int
    smaller: str
    """What makes the language model take less, with a comma, for a remedy; or empty."""


def _need(settings: Settings, models: ChosenModels, found: tuple[Gpu, ...]) -> _Need:
    """Return what the chosen models take.

    Raises:
        ModelLoadError: the language model may not be loaded here, whatever is free.
    """
    needs = llm.Needs()
    if isinstance(models.llm, LocalModel):
        needs = llm.unloaded(settings.llm).needs(models.llm.entry, found)
    ram_bytes = LIBRARIES_BYTES + needs.ram_bytes
    ram_bytes += sum(_size_bytes(voice) for voice in (models.tts, *models.voices.values()))
    gpu_bytes = needs.gpu_bytes
    stt_bytes = _size_bytes(models.stt)
    if stt_bytes and found and settings.stt.device != "cpu" and not hardware.missing_cuda_libraries():
        gpu_bytes += stt_bytes + STT_WORKSPACE_BYTES
    else:
        ram_bytes += stt_bytes
    if any(gpu.unified_memory for gpu in found):
        ram_bytes += gpu_bytes
    smaller = f"{needs.remedy}, " if needs.remedy else ""
    return _Need(needs.cache_tokens, gpu_bytes, ram_bytes, smaller)


def _size_bytes(source: Source) -> int:
    return source.entry.size_bytes if isinstance(source, LocalModel) else 0


def _enough(name: str, told: str, remedy: str, *, free_bytes: int, needed_bytes: int) -> Finding:
    if free_bytes < needed_bytes:
        return Finding(name, "warning", told, remedy)
    return Finding(name, "ok", told)


def _roles(models: ChosenModels) -> Iterator[tuple[str, Source]]:
    yield from (("stt", models.stt), ("llm", models.llm), ("tts", models.tts))
    yield from (("tts, voice", voice) for voice in models.voices.values())


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
