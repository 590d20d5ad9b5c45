"""Which models are here: of the catalogue, from Hugging Face, or the owner's own in `models.directory`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import Catalogue, Role
from june.models.files import is_present
from june.models.own_files import SPLIT, is_text
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
    """Yield the GGUF files in the folder, and in its folders, that june did not pull.

    A path that is not in UTF-8 is passed over: it could not be logged or sent.
    """
    pulled = {model.folder(directory) for model in catalogue.values()}
    for path in sorted((*directory.glob("*.gguf"), *directory.glob("*/*.gguf"))):
        part = SPLIT.fullmatch(path.name)
        is_pulled = path.parent in pulled or (path.parent / PINNED_FILE).exists()
        is_first = part is None or int(part["part"]) == 1
        if path.is_file() and not is_pulled and is_first and is_text(path):
            yield path


def present_llms(named: str, catalogue: Catalogue, directory: Path) -> dict[str, str]:
    """Return what the settings would call each language model that is here, by its name.

    Args:
        named: what `llm.model` says; it may be a file elsewhere.
        catalogue: from `load_catalogue`.
        directory: `models.directory`.
    """
    found = _own_llms(named, list(loose_files(catalogue, directory)), directory)
    found |= {pinned.name: pinned.name for pinned in pulled_places(directory) if pinned.role == "llm"}
    for model in catalogue.values():
        if model.role == "llm" and is_present(model, model.folder(directory)):
            found[model.name] = model.name
    return found


def _own_llms(named: str, loose: Sequence[Path], directory: Path) -> dict[str, str]:
    """Return the owner's own files by name, and what the settings would call each.

    The file that `llm.model` names is called as june calls it from its start, by the file's name. One in the
    folder is called so, too, unless another has that name: then by its path in the folder.
    """
    own: dict[str, str] = {}
    if is_path(named):
        with suppress(ModelFileError):  # it was moved away since june began
            file = gguf_file(Path(named))
            own = {file.name: named}
            loose = [path for path in loose if path.resolve() != file.resolve()]
    names = Counter([*own, *(path.name for path in loose)])
    found: dict[str, str] = {}
    for path in loose:
        name = path.name if names[path.name] == 1 else str(path.relative_to(directory))
        found[str(path) if name in own else name] = str(path)
    return found | own


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
    except (RuntimeError, OSError, ValueError):  # links that lead to one another; no path at all
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
