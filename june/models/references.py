"""What the settings call a model, and which model that is."""

from pathlib import Path

from june.errors import ModelFileError
from june.models.catalogue import Catalogue, Role
from june.models.sources import LocalModel


def find(key: str, reference: str, role: Role, catalogue: Catalogue, directory: Path) -> LocalModel:
    """Return the model that a key of the settings names; its files may still be missing.

    Args:
        key: such as "llm.model", for the sentence that says what is wrong.
        reference: a name in the catalogue.
        role: what the model is to do.
        catalogue: from `load_catalogue`.
        directory: `models.directory`.

    Raises:
        ModelFileError: there is no such model, or it is one for another role.
    """
    if reference not in catalogue:
        raise ModelFileError(f"{key}: {reference!r} is not in the catalogue; see python -m june models list.")
    entry = catalogue[reference]
    if entry.role != role:
        raise ModelFileError(f"{key}: {reference} is a model for {entry.role}, not for {role}.")
    return LocalModel(entry, entry.path(directory))
