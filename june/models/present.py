"""Which models are here: of the catalogue, from Hugging Face, or the owner's own in `models.directory`."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import Catalogue, Role
from june.models.files import is_present
from june.models.own_files import SPLIT
from june.models.own_llm import gguf_file
from june.models.references import PINNED_FILE, Pinned, find, is_path, read_pinned_file
from june.models.sources import LocalModel


def pulled_places(directory: Path) -> Iterator[Pinned]:
    """Yield what was pulled from Hugging Face and is here whole; damaged notes of it are passed over."""
    for file in sorted(directory.glob(f"*/{PINNED_FILE}")):
        try:
            pinned = read_pinned_file(file)
        except ModelFileError:  # whoever names it is told
            continue
        if pinned.folder(directory) == file.parent and is_present(pinned, file.parent):
            yield pinned


def loose_files(catalogue: Catalogue, directory: Path) -> Iterator[Path]:
    """Yield the GGUF files in the folder, and in its folders, that june did not pull."""
    pulled = {model.folder(directory) for model in catalogue.values()}
    for path in sorted((*directory.glob("*.gguf"), *directory.glob("*/*.gguf"))):
        part = SPLIT.fullmatch(path.name)
        is_pulled = path.parent in pulled or (path.parent / PINNED_FILE).exists()
        if path.is_file() and not is_pulled and (part is None or int(part["part"]) == 1):
            yield path


def present_llms(named: str, catalogue: Catalogue, directory: Path) -> dict[str, str]:
    """Return what the settings would call each language model that is here, by its name.

    Args:
        named: what `llm.model` says; it may be a file elsewhere.
        catalogue: from `load_catalogue`.
        directory: `models.directory`.
    """
    found = {path.name: str(path) for path in loose_files(catalogue, directory)}
    found |= {pinned.name: pinned.name for pinned in pulled_places(directory) if pinned.role == "llm"}
    if is_path(named):
        with suppress(ModelFileError):  # it was moved away since june began
            found[gguf_file(Path(named)).name] = named
    for model in catalogue.values():
        if model.role == "llm" and is_present(model, model.folder(directory)):
            found[model.name] = model.name
    return found


def find_present(called: str, present: Mapping[str, str]) -> str | None:
    """Return the name of the model that somebody calls by its name or by its path; None: it is not here."""
    if called in present:
        return called
    if not is_path(called):
        return None
    paths = {name: reference for name, reference in present.items() if is_path(reference)}
    try:
        path = Path(called).resolve()
        return next((name for name, reference in paths.items() if Path(reference).resolve() == path), None)
    except RuntimeError:  # links that lead to one another
        return None


def present_own(catalogue: Catalogue, directory: Path) -> list[LocalModel]:
    """Return the models that are here and not of the catalogue; those with broken files are passed over."""
    loose = (str(path.absolute()) for path in loose_files(catalogue, directory))
    calls: list[tuple[Role, str]] = [("llm", path) for path in loose]
    calls += [(pinned.role, pinned.name) for pinned in pulled_places(directory)]
    own = []
    for role, reference in calls:
        try:
            own.append(find(reference, role, catalogue, directory))
        except ModelFileError:
            continue
    return own
