"""What the file `model.bin` of a CTranslate2 model says of itself.

Its format, as `ctranslate2.specs.model_spec` writes it: a version, the name of the kind of model, a revision,
the number of variables, and for each its name, its dimensions, its type and its bytes. Only the former are
read, and the bytes are stepped over.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from june.errors import ModelFileError

OLDEST_VERSION = 4
"""Before it, the variables were written otherwise; it is of 2020."""
MAX_VARIABLES = 100_000
MAX_DIMENSIONS = 8
MELS = "encoder/conv1/weight"
"""The first layer of Whisper: its second dimension is the number of mel bands."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What `model.bin` holds.

    Attributes:
        kind: what CTranslate2 calls this kind of model, such as "WhisperSpec".
        parameters: how many weights there are.
        mels: bands of the spectrogram that a Whisper model looks at; 0: not said.
    """

    kind: str
    parameters: int
    mels: int


def read_weights(path: Path) -> Weights:
    """Return what a `model.bin` says of itself.

    Raises:
        ModelFileError: the file cannot be read, or CTranslate2 did not write it.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error
    except (struct.error, ValueError) as error:
        raise ModelFileError(f"{path} is not a model that CTranslate2 wrote.") from error


def _read(stream: BinaryIO) -> Weights:
    if _number(stream, "<I") < OLDEST_VERSION:
        raise ValueError("too old")
    kind = _text(stream)
    _number(stream, "<I")  # the revision
    variables = _number(stream, "<I")
    if variables > MAX_VARIABLES:
        raise ValueError("too many variables")
    parameters = mels = 0
    for _ in range(variables):
        name = _text(stream)
        rank = _number(stream, "<B")
        if rank > MAX_DIMENSIONS:
            raise ValueError("too many dimensions")
        dimensions = [_number(stream, "<I") for _ in range(rank)]
        _number(stream, "<B")  # the type
        stream.seek(_number(stream, "<I"), 1)
        parameters += prod(dimensions)
        if name == MELS and rank > 1:
            mels = dimensions[1]
    if stream.tell() > stream.seek(0, 2):
        raise ValueError("a part is missing")
    return Weights(kind, parameters, mels)


def _number(stream: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "<H")).rstrip(b"\0").decode()
