"""june's kernel multiplies what llama.cpp would, in its place, and only where it can."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from june import hardware
from june.llm import cpu_format, matmul
from june.llm.llama_cpp import LlamaCpp
from june.settings import LlmSettings, Settings
from tests.conftest import CATALOGUE, LLM
from tests.test_isolation import Forced, Logits, asks, difference, logits_of
from tests.test_llm import with_engine

BLOCK = 32
F32, Q4_1, Q8_0, Q8_1 = 0, 3, 8, 9
Floats = NDArray[np.float64]
Blocks = NDArray[np.void]

needs_vnni = pytest.mark.skipif(
    not hardware.cpu_flags() >= matmul.CPU_FLAGS, reason="this CPU has no AVX512-VNNI"
)


class Thread(ctypes.Structure):
    """The beginning of ggml's ggml_compute_params."""

    _fields_ = (("number", ctypes.c_int), ("count", ctypes.c_int))


@dataclass(frozen=True)
class Format:
    """A number format of weights, and the one in which activations meet it."""

    number: int
    activations: int
    weights: Callable[[np.random.Generator, int, int], Blocks]
    values: Callable[[Blocks], Floats]


def q8(random: np.random.Generator, rows: int, blocks: int) -> Blocks:
    made = np.zeros((rows, blocks), [("scale", "<f2"), ("values", "i1", BLOCK)])
    made["scale"] = random.uniform(0.001, 0.02, made.shape)
    made["values"] = random.integers(-127, 128, (*made.shape, BLOCK))
    return made


def q8_1(random: np.random.Generator, rows: int, blocks: int) -> Blocks:
    made = np.zeros((rows, blocks), [("scale", "<f2"), ("sum", "<f2"), ("values", "i1", BLOCK)])
    made["scale"] = random.uniform(0.001, 0.02, made.shape)
    made["values"] = random.integers(-127, 128, (*made.shape, BLOCK))
    made["sum"] = made["scale"].astype(float) * made["values"].sum(-1)
    return made


def q4_1(random: np.random.Generator, rows: int, blocks: int) -> Blocks:
    made = np.zeros((rows, blocks), [("scale", "<f2"), ("minimum", "<f2"), ("values", "u1", BLOCK // 2)])
    made["scale"] = random.uniform(0.001, 0.02, made.shape)
    made["minimum"] = random.uniform(-0.1, 0.1, made.shape)
    made["values"] = random.integers(0, 256, (*made.shape, BLOCK // 2))
    return made


def q8_values(blocks: Blocks) -> Floats:
    values: Floats = blocks["scale"][..., None].astype(float) * blocks["values"]
    return values


def q4_1_values(blocks: Blocks) -> Floats:
    numbers = np.concatenate([blocks["values"] & 15, blocks["values"] >> 4], -1)
    scaled = blocks["scale"][..., None].astype(float) * numbers
    values: Floats = scaled + blocks["minimum"][..., None].astype(float)
    return values


FORMATS = {"Q8_0": Format(Q8_0, Q8_0, q8, q8_values), "Q4_1": Format(Q4_1, Q8_1, q4_1, q4_1_values)}
ACTIVATIONS = {Q8_0: q8, Q8_1: q8_1}


@pytest.fixture(autouse=True)
def used_again() -> Iterator[None]:
    """The kernel is one for the process: models of other tests go on with it."""
    yield
    matmul.use(wanted=True)


@pytest.fixture
def kernel() -> Any:
    """The function that llama.cpp calls."""
    assert matmul.use(wanted=True)
    library = ctypes.CDLL(str(matmul.LIBRARY))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.llamafile_sgemm.restype = ctypes.c_bool
    library.llamafile_sgemm.argtypes = [
        *(ctypes.POINTER(Thread), number, number, number),
        *(pointer, number, pointer, number, pointer, number),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ]
    return library.llamafile_sgemm


def multiply(kernel: Any, form: Format, weights: Blocks, activations: Blocks, threads: int = 1) -> Floats:
    """What all threads make of it; weights and activations may be parts of wider arrays."""
    rows, tokens = len(weights), len(activations)
    out = np.full((tokens, rows), np.nan, np.float32)
    for thread in range(threads):
        assert kernel(
            Thread(thread, threads),
            *(rows, tokens, weights.shape[1]),
            *(weights.ctypes.data, weights.strides[0] // weights.itemsize),
            *(activations.ctypes.data, activations.strides[0] // activations.itemsize),
            *(out.ctypes.data, rows),
            *(form.number, form.activations, F32),
        )
    return out.astype(float)


def expected(form: Format, weights: Blocks, activations: Blocks) -> Floats:
    product: Floats = np.einsum("rbi,tbi->tr", form.values(weights), q8_values(activations))
    if form.number == Q4_1:  # the sum that comes with the activations is rounded
        rounded = activations["sum"].astype(float) - q8_values(activations).sum(-1)
        product += np.einsum("rb,tb->tr", weights["minimum"].astype(float), rounded)
    return product


@needs_vnni
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "blocks"), [(16, 1), (192, 18), (576, 48)])
@pytest.mark.parametrize("tokens", [1, 2, 8, 12, 13, 40])
def test_products_are_those_of_the_numbers(
    kernel: Any, name: str, rows: int, blocks: int, tokens: int
) -> None:
    random = np.random.default_rng(rows + tokens)
    form = FORMATS[name]
    weights = form.weights(random, rows, blocks + 1)[:, :blocks]
    activations = ACTIVATIONS[form.activations](random, tokens, blocks + 2)[:, 1 : blocks + 1]
    product = multiply(kernel, form, weights, activations)
    sizes = np.einsum("rbi,tbi->tr", abs(form.values(weights)), abs(q8_values(activations)))
    assert (abs(product - expected(form, weights, activations)) / sizes).max() < 1e-6


@needs_vnni
@pytest.mark.parametrize("name", FORMATS)
def test_a_token_gets_the_same_to_the_last_bit_whoever_is_in_its_batch(kernel: Any, name: str) -> None:
    random = np.random.default_rng(7)
    form = FORMATS[name]
    weights = form.weights(random, 64, 18)
    activations = ACTIVATIONS[form.activations](random, 30, 18)
    together = multiply(kernel, form, weights, activations)
    for tokens in (1, 5, 12, 29):
        np.testing.assert_array_equal(
            multiply(kernel, form, weights, activations[-tokens:]), together[-tokens:]
        )


@needs_vnni
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_rows_and_leave_none_out(kernel: Any, threads: int) -> None:
    random = np.random.default_rng(threads)
    form = FORMATS["Q4_1"]
    weights, activations = q4_1(random, 80, 4), q8_1(random, 3, 4)
    shared = multiply(kernel, form, weights, activations, threads)
    np.testing.assert_array_equal(shared, multiply(kernel, form, weights, activations))


@needs_vnni
@pytest.mark.usefixtures("llm")  # llama.cpp makes its tables when a model is loaded
def test_llama_cpp_computes_what_the_kernel_does_not(kernel: Any) -> None:
    random = np.random.default_rng(1)
    form = FORMATS["Q8_0"]
    weights, activations = q8(random, 20, 18), q8(random, 4, 18)  # 20 rows are not all in sixteens
    product = multiply(kernel, form, weights, activations)
    np.testing.assert_allclose(product, expected(form, weights, activations), rtol=1e-4, atol=1e-3)


@needs_vnni
async def test_the_logits_are_llama_cpps_but_for_rounding(
    settings: Settings, model_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("june.llm.llama_cpp.engine.cpu_format", lambda *_, **__: None)  # the same weights

    def work(engine: Forced) -> tuple[bool, Logits]:
        return engine.has_own_kernel, logits_of(engine, "fox", asks("fox"))

    logits = {}
    for kernel in ("llama.cpp", "auto"):
        llm = settings.llm.model_copy(update={"kernel": kernel})
        has_own_kernel, logits[kernel] = await with_engine(Forced, llm, model_paths[LLM], work)
        assert has_own_kernel == (kernel == "auto")
    assert 0 < difference(logits["auto"], logits["llama.cpp"]) < 0.02 * np.ptp(logits["auto"])


@pytest.mark.parametrize("why", ["setting", "cpu", "not compiled", "another machine", "another llama.cpp"])
async def test_a_model_is_converted_for_llama_cpp_where_the_kernel_cannot_compute(
    why: str,
    settings: Settings,
    model_paths: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    llm = settings.llm
    if why == "setting":
        llm = llm.model_copy(update={"kernel": "llama.cpp"})
    elif why == "cpu":
        monkeypatch.setattr(hardware, "cpu_flags", lambda: hardware.AVX512)
    elif why == "another llama.cpp":
        monkeypatch.setattr(matmul, "LLAMA_CPP_PYTHON", "0.0.1")
    else:
        monkeypatch.setattr(matmul, "LIBRARY", tmp_path / "matmul.kernel")
    if why == "another machine":
        matmul.LIBRARY.write_bytes(b"\x7fELF of another kind")
    assert cpu_format(CATALOGUE[LLM], llm, offloaded=False) == "Q8_0"
    assert cpu_format(CATALOGUE[LLM], llm, offloaded=True) is None
    matmul.load()
    assert await whose_kernel(llm, model_paths[LLM]) == "llama.cpp"


@needs_vnni
async def test_the_kernel_computes_with_the_weights_as_they_come(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    assert cpu_format(CATALOGUE[LLM], settings.llm, offloaded=False) is None
    assert await whose_kernel(settings.llm, model_paths[LLM]) == "june"


async def whose_kernel(settings: LlmSettings, path: Path) -> object:
    """Whose computes, after an answer."""
    llm = LlamaCpp(settings, CATALOGUE[LLM], path)
    await llm.load()
    await llm.warm_up()
    kernel = llm.describe().details["kernel"]
    await llm.close()
    return kernel
