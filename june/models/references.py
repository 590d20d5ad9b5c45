"""What the settings call a model, and which model that is.

A model is called by its name in the catalogue, by the path of a file or folder, or by its place on Hugging
Face: `hf:OWNER/REPO/FILE@REVISION`. The first pull finds out which files that is, at which commit, and keeps
it beside the files: they do not change by themselves, and a start needs no network.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from june.errors import ModelFileError
from june.models.catalogue import MAIN_FILE, Catalogue, Model, ModelFiles, Role, folder_of
from june.models.files import is_present
from june.models.own import describe
from june.models.own_files import printable
from june.models.sources import LocalModel
from june.workers import StopFlag

SCHEME = "hf:"
PLACE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>[\w./ -]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
EXPECTED = "expected hf:OWNER/REPO/FILE or hf:OWNER/REPO/FILE@REVISION"
FORMATS: dict[Role, str] = {"stt": "", "llm": MAIN_FILE["gguf"], "tts": MAIN_FILE["piper"]}
"""How the file ends that a place on Hugging Face names; "" where it names a folder."""

PINNED_FILE = ".pinned.json"
MAX_PINNED_BYTES = 1_000_000


class NotPulledError(ModelFileError):
    """A model on Hugging Face was not pulled yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place on Hugging Face.

    Attributes:
        reference: as it is written.
        repo: "OWNER/REPO".
        path: of a file or folder in it; "" is the whole repository.
        revision: a branch, tag or commit; "": the newest.
    """

    reference: str
    repo: str
    path: str
    revision: str

    @property
    def role(self) -> Role:
        """What the model there does, by how its name ends."""
        return next(
            (role for role, ending in FORMATS.items() if ending and self.path.endswith(ending)), "stt"
        )


class Pinned(ModelFiles):
    """The files of a model on Hugging Face at one commit; its name is the reference."""

    role: Role


def is_path(reference: str) -> bool:
    """Return whether a model is called by its path, which no name in the catalogue looks like."""
    if reference.startswith(SCHEME) or "://" in reference:
        return False
    return "/" in reference or reference.startswith("~") or reference.endswith((".gguf", ".onnx"))


def own_path(reference: str, folder: Path) -> str:
    """Return a path as an absolute one, taken relative to a folder; any other reference as it is.

    Raises:
        ModelFileError: it begins with ~ and a user whom this machine does not know, or holds a NUL.
    """
    if "\0" in reference:
        raise ModelFileError("expected a model's path without a NUL character.")
    try:
        return str(folder / Path(reference).expanduser()) if is_path(reference) else reference
    except RuntimeError as error:
        raise ModelFileError("expected a model's path in a home that exists, if it begins with ~.") from error


def parse_place(reference: str) -> Place:
    """Return the place that `hf:…` names.

    Raises:
        ModelFileError: it is written otherwise.
    """
    match = PLACE.fullmatch(reference.removeprefix(SCHEME))
    parts = PurePosixPath(match["path"] or "").parts if match else ()
    names = (*match["repo"].split("/"), *parts) if match else ()
    if match is None or "." in names or ".." in names or "/" in names:
        raise ModelFileError(f"{printable(reference)}: {EXPECTED}.")
    return Place(reference, match["repo"], "/".join(parts), match["revision"] or "")


def read_pinned(reference: str, directory: Path) -> Pinned | None:
    """Return which files a place on Hugging Face stands for; None if it was never pulled.

    Raises:
        ModelFileError: what was kept of it cannot be read.
    """
    file = folder_of(reference, directory) / PINNED_FILE
    try:
        if not file.exists():
            return None
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}.") from error
    pinned = read_pinned_file(file)
    return pinned if pinned.name == reference else None


def read_pinned_file(file: Path) -> Pinned:
    """Return what a file `.pinned.json` keeps.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return Pinned.model_validate_json(stream.read(MAX_PINNED_BYTES))
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise ModelFileError(f"{file} is damaged; delete it and pull the model again.") from error


def write_pinned(pinned: Pinned, directory: Path) -> None:
    """Keep which files a place on Hugging Face stands for.

    Raises:
        ModelFileError: the folder cannot be written to.
    """
    folder = pinned.folder(directory)
    new = folder / f"{PINNED_FILE}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_text(pinned.model_dump_json(), "utf-8")
        new.replace(folder / PINNED_FILE)
    except OSError as error:
        raise ModelFileError(f"{folder} cannot be written to: {error.strerror}.") from error


def find(
    reference: str, role: Role, catalogue: Catalogue, directory: Path, stop: StopFlag | None = None
) -> LocalModel:
    """Return the model that the settings or a person call so; a file of the catalogue's may still be missing.

    Args:
        reference: what they call it.
        role: what the model is to do.
        catalogue: from `load_catalogue`.
        directory: `models.directory`.
        stop: ends the reading of a model of many parts when it is set.

    Raises:
        NotPulledError: it is on Hugging Face, and its files are not here.
        ModelFileError: there is no such model, or it is one for another role.
    """
    if "://" in reference:
        raise ModelFileError("this is an address, and the backend opens files.")  # it may hold a password
    if is_path(reference):
        return describe(role, Path(own_path(reference, Path.cwd())), stop)
    if reference.startswith(SCHEME):
        return _pulled(reference, role, directory, stop)
    entry = catalogue_entry(reference, catalogue)
    if entry.role != role:
        raise ModelFileError(f"{reference} is a model for {entry.role}, not for {role}.")
    return LocalModel(entry, entry.path(directory))


def catalogue_entry(name: str, catalogue: Catalogue) -> Model:
    """Return a model of the catalogue.

    Raises:
        ModelFileError: there is none of that name.
    """
    if name not in catalogue:
        raise ModelFileError(
            f"{name!r} is not in the catalogue; see python -m june models list. "
            "A file of your own is written as a path, such as ./my.gguf."
        )
    return catalogue[name]


def role_of(reference: str, catalogue: Catalogue) -> Role:
    """Return what a model does, by the catalogue or by how its name ends."""
    if reference in catalogue:
        return catalogue[reference].role
    endings: dict[str, Role] = {ending: role for role, ending in FORMATS.items() if ending}
    return endings.get(PurePosixPath(reference.partition("@")[0]).suffix, "stt")


def require_role(place: Place, role: Role) -> None:
    """Return if a place on Hugging Face names what a role needs.

    Raises:
        ModelFileError: it does not.
    """
    if place.role != role:
        wanted = f"a file {FORMATS[role]}" if FORMATS[role] else "a folder with a model for CTranslate2"
        raise ModelFileError(f"{place.reference} is not {wanted}.")


def _pulled(reference: str, role: Role, directory: Path, stop: StopFlag | None) -> LocalModel:
    require_role(parse_place(reference), role)
    pinned = read_pinned(reference, directory)
    folder = folder_of(reference, directory)
    if pinned is None or not is_present(pinned, folder):
        remedy = f"python -m june models pull {reference}"
        raise NotPulledError(f"{reference} is not here yet; run: {remedy}")
    found = describe(role, folder if role == "stt" else folder / pinned.files[0].name, stop)
    known = {"name": reference, "huggingface": pinned.huggingface, "files": pinned.files}
    return LocalModel(found.entry.model_copy(update=known), found.path)
