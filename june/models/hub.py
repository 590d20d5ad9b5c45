"""Hugging Face: what a place there stands for, and the download of a file.

`hf_hub_download` of huggingface_hub 2.4 begins anew in every process, so it is not used.
"""

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, get_session, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from pydantic import ValidationError

from june.errors import ModelFileError
from june.models.catalogue import HuggingFaceRepo, ModelFile, Role
from june.models.own_llm import split_parts
from june.models.references import Pinned, Place, parse_place, read_pinned, require_role, write_pinned
from june.workers import StopFlag, unless_stopped

SILENCE_S = 30.0
"""A server that sends nothing for so long counts as lost."""
ANSWER_S = 10.0
"""The same, while it is asked what there is."""

WHISPER_FILES = ("model.bin", "config.json", "tokenizer.json")
WHISPER_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
WHISPER_OPTIONAL = "preprocessor_config.json"


def pin(
    reference: str, role: Role | None, directory: Path, *, token: str = "", stop: StopFlag | None = None
) -> Pinned:
    """Return which files a place on Hugging Face stands for; asks there once, and keeps the answer.

    Args:
        reference: such as "hf:Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf".
        role: what the model is to do; None: what its name says.
        directory: `models.directory`.
        token: of Hugging Face; empty: the one that huggingface_hub finds on this machine, if any.
        stop: ends the waiting for the answer when it is set.

    Raises:
        ModelFileError: there is no such place, it holds no model that june can use, or nobody answers;
            or `stop` was set.
    """
    place = parse_place(reference)
    require_role(place, role or place.role)
    pinned = read_pinned(reference, directory)
    if pinned is None:
        pinned = _ask(place, token, stop or StopFlag())
        write_pinned(pinned, directory)
    return pinned


def _ask(place: Place, token: str, stop: StopFlag) -> Pinned:
    ask = partial(
        HfApi().model_info,
        place.repo,
        revision=place.revision or None,
        files_metadata=True,
        timeout=ANSWER_S,
        token=token or None,
    )
    try:
        info = unless_stopped(stop, ask)
    except GatedRepoError as error:
        raise ModelFileError(
            f"{place.repo} is for people who accepted its terms: accept them on its page at Hugging Face, "
            "and set models.hugging_face_token."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelFileError(
            f"Hugging Face has no {place.repo}, or shows it only to whom models.hugging_face_token is for."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelFileError(f"{place.repo} has no revision {place.revision!r}.") from error
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"Hugging Face cannot be asked for {place.reference}: {reason}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # huggingface_hub checks little
        raise _odd(place) from error
    if info is None:
        raise ModelFileError(f"{place.reference} was not asked for to the end: june was asked to stop.")
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    try:
        repo = HuggingFaceRepo(repo=place.repo, revision=info.sha or "")
        files = tuple(_file(there[path]) for path in _wanted(place, there))
        return Pinned(name=place.reference, role=place.role, huggingface=repo, files=files)
    except ValidationError as error:
        raise _odd(place) from error


def _odd(place: Place) -> ModelFileError:
    return ModelFileError(f"Hugging Face says what june does not know of {place.reference}.")


def _file(sibling: RepoSibling) -> ModelFile:
    return ModelFile(
        name=PurePosixPath(sibling.rfilename).name,
        size_bytes=sibling.size or 0,
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        members=(sibling.rfilename,),
    )


def _wanted(place: Place, there: Mapping[str, RepoSibling]) -> list[str]:
    """Return the paths of the files that the model there consists of, the main file first.

    Raises:
        ModelFileError: one of them is not there.
    """
    if place.role == "llm":
        wanted = [str(PurePosixPath(place.path).with_name(name)) for name in split_parts(_name(place))]
    elif place.role == "tts":
        wanted = [place.path, f"{place.path}.json"]
    else:
        wanted = _whisper_files(place, there)
    for path in wanted:
        if path not in there:
            raise ModelFileError(f"{place.repo} has no {path}, which {place.reference} needs.")
    return wanted


def _name(place: Place) -> str:
    return PurePosixPath(place.path).name


def _whisper_files(place: Place, there: Mapping[str, RepoSibling]) -> list[str]:
    folder = f"{place.path}/" if place.path else ""
    vocabulary = next(
        (name for name in WHISPER_VOCABULARIES if folder + name in there), WHISPER_VOCABULARIES[0]
    )
    optional = [WHISPER_OPTIONAL] if folder + WHISPER_OPTIONAL in there else []
    return [folder + name for name in (*WHISPER_FILES, vocabulary, *optional)]


def download(
    source: HuggingFaceRepo, file: ModelFile, part: Path, *, token: str, stop: StopFlag
) -> Iterator[int]:
    """Yield how many bytes of a file have come; goes on where `part` ends.

    Args:
        source: where the file is.
        file: the file.
        part: where its bytes go.
        token: see `pin`.
        stop: ends the download when it is set.

    Raises:
        ModelFileError: the connection is lost, or there is no such file.
    """
    headers = {"Accept-Encoding": "identity"}
    if token := token or get_token() or "":
        headers["Authorization"] = f"Bearer {token}"  # httpx2 drops it where Hugging Face redirects elsewhere
    member = file.members[0] if file.members else file.name
    url = hf_hub_url(source.repo, member, revision=source.revision)
    try:
        yield from _download(url, headers, part, file.size_bytes, stop)
    except httpx2.HTTPError as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{file.name} cannot be downloaded: {reason}; pull again to go on.") from error


def _download(
    url: str, headers: dict[str, str], part: Path, size_bytes: int, stop: StopFlag
) -> Iterator[int]:
    """Yield how many bytes `part` has; a lost connection is taken up again if it brought something."""
    session = get_session()
    with part.open("ab") as out:
        while (have := out.tell()) < size_bytes:
            ranged = headers | {"Range": f"bytes={have}-"}
            try:
                request = session.build_request("GET", url, headers=ranged, timeout=SILENCE_S)
                response = unless_stopped(stop, partial(session.send, request, stream=True))
                if response is None:
                    raise ModelFileError(f"{part.stem} was not downloaded: june was asked to stop.")
                with closing(response):
                    response.raise_for_status()
                    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                        out.seek(0)
                        out.truncate()
                    with stop.interrupts(partial(_hang_up, response)):
                        for chunk in response.iter_bytes():
                            out.write(chunk)
                            yield out.tell()
                            if out.tell() > size_bytes:  # another file: its check will say so
                                return
            except httpx2.TransportError:
                if out.tell() <= have or stop.is_set():
                    raise
            else:
                return


def _hang_up(response: httpx2.Response) -> None:
    """On another thread than the one that reads: a reader of a silent connection wakes."""
    with suppress(OSError):  # it is closed already
        response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
