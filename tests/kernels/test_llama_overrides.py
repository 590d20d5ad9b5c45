"""june's kernels compute what llama.cpp would, in its place, and only where they can."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from june import hardware, kernels
from june.kernels import llama_overrides
from june.llm.llama_cpp.model import LlamaCpp
from june.llm.llama_cpp.needs import cpu_format
from june.llm.llama_cpp.settings import DEFAULTS, LlamaCppSettings
from june.models import LocalModel
from june.sections import LlmSettings
from june.settings import Settings
from tests.conftest import CATALOGUE, LLM
from tests.llm.llama_cpp.test_isolation import Forced, Logits, asks, logits_of, needs_kernel
from tests.llm.llama_cpp.test_model import with_engine

BLOCK = 32
F32, F16, Q4_1, Q8_0, Q8_1 = 0, 1, 3, 8, 9
Floats = NDArray[np.float64]
Blocks = NDArray[np.void]


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
    """Switch the kernel on again after each test, since the models of other tests share it."""
    yield
    llama_overrides.use(wanted=True)


@pytest.fixture(params=kernels.LLM, ids=lambda kernel: kernel.library.stem)
def kernel(request: pytest.FixtureRequest) -> Any:
    """Return the functions that llama.cpp calls, for each library that this CPU runs."""
    if not request.param.runs_here:
        pytest.skip("this CPU has not the instructions")
    library = ctypes.CDLL(str(request.param.library))
    library.june_use_kernels(ctypes.c_bool(True))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.llamafile_sgemm.restype = ctypes.c_bool
    library.llamafile_sgemm.argtypes = [
        *(ctypes.POINTER(Thread), number, number, number),
        *(pointer, number, pointer, number, pointer, number),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ]
    return library


def multiply(kernel: Any, form: Format, weights: Blocks, activations: Blocks, threads: int = 1) -> Floats:
    """Return the product that all threads compute; both arguments may be parts of wider arrays."""
    rows, tokens = len(weights), len(activations)
    out = np.full((tokens, rows), np.nan, np.float32)
    for thread in range(threads):
        assert kernel.llamafile_sgemm(
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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("byte", [0xFF, 0x80, 0x7F])  # the nibbles 15; -128; 127
@pytest.mark.parametrize("activation", [-127, 127])
def test_no_sum_is_too_large_on_the_way(kernel: Any, name: str, byte: int, activation: int) -> None:
    random = np.random.default_rng(1)
    form = FORMATS[name]
    weights = form.weights(random, 16, 3)
    activations = ACTIVATIONS[form.activations](random, 5, 3)
    weights["values"] = np.uint8(byte).astype(weights["values"].dtype.base)
    activations["values"] = activation
    product = multiply(kernel, form, weights, activations)
    np.testing.assert_allclose(product, expected(form, weights, activations), rtol=1e-6)


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


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_rows_and_leave_none_out(kernel: Any, threads: int) -> None:
    random = np.random.default_rng(threads)
    form = FORMATS["Q4_1"]
    weights, activations = q4_1(random, 80, 4), q8_1(random, 3, 4)
    shared = multiply(kernel, form, weights, activations, threads)
    np.testing.assert_array_equal(shared, multiply(kernel, form, weights, activations))


@pytest.mark.usefixtures("llm")  # llama.cpp makes its tables when a model is loaded
def test_llama_cpp_computes_what_the_kernel_does_not(kernel: Any) -> None:
    random = np.random.default_rng(1)
    form = FORMATS["Q8_0"]
    weights, activations = q8(random, 20, 18), q8(random, 4, 18)  # 20 rows are not all in sixteens
    product = multiply(kernel, form, weights, activations)
    np.testing.assert_allclose(product, expected(form, weights, activations), rtol=1e-4, atol=1e-3)


class Tensor(ctypes.Structure):
    """ggml_tensor up to its data."""


Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("sizes", ctypes.c_int64 * 4),
    ("strides_bytes", ctypes.c_size_t * 4),
    ("operation", ctypes.c_int),
    ("parameters", ctypes.c_float * 16),
    ("flags", ctypes.c_int32),
    ("sources", ctypes.POINTER(Tensor) * 10),
    ("viewed", ctypes.c_void_p),
    ("viewed_from", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
)


def tensor(array: NDArray[Any], kind: int) -> Tensor:
    """Return an array as ggml describes it, with the fastest dimension first."""
    made = Tensor(type=kind, data=array.ctypes.data)
    made.sizes[:] = [*array.shape[::-1], *[1] * (4 - array.ndim)]
    made.strides_bytes[:] = [*array.strides[::-1], *[array.nbytes] * (4 - array.ndim)]
    return made


@dataclass(frozen=True)
class Cache:
    """Queries (tokens, heads, width), keys and values (cells, heads, width), and mask (tokens, cells)."""

    queries: NDArray[np.float32]
    keys: NDArray[np.float16]
    values: NDArray[np.float16]
    mask: NDArray[np.float16] | None

    def expected(self) -> Floats:
        """Return the weighted means, computed by the definition."""
        share = self.queries.shape[1] // self.keys.shape[1]
        keys, values = (np.repeat(each.astype(float), share, axis=1) for each in (self.keys, self.values))
        scores = np.einsum("thw,chw->htc", self.queries.astype(float), keys) * 0.125
        if self.mask is not None:
            scores += self.mask.astype(float)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mean: Floats = np.einsum("htc,chw->thw", weights / weights.sum(-1, keepdims=True), values)
        return mean

    def attended(self, kernel: Any, threads: int = 1) -> Floats:
        """Return the kernel's result."""
        out = np.full(self.queries.shape, np.nan, np.float32)
        asked = tensor(out, F32)
        asked.parameters[0] = 0.125
        sources = [  # in llama.cpp's order of dimensions, the heads come after tokens and cells
            tensor(self.queries.transpose(1, 0, 2), F32),
            tensor(self.keys.transpose(1, 0, 2), F16),
            tensor(self.values.transpose(1, 0, 2), F16),
            *([tensor(self.mask, F16)] if self.mask is not None else []),
        ]
        for index, source in enumerate(sources):
            asked.sources[index] = ctypes.pointer(source)
        for thread in range(threads):
            kernel.ggml_compute_forward_flash_attn_ext(
                ctypes.byref(Thread(thread, threads)), ctypes.byref(asked)
            )
        return out.astype(float)


def cache(tokens: int, cells: int, *, width: int = 64, heads: int = 3, share: int = 3) -> Cache:
    random = np.random.default_rng(tokens + cells)
    mask = np.where(random.random((tokens, cells)) < 0.5, 0, -np.inf).astype(np.float16)
    mask[tokens // 2 :, :64] = -np.inf  # a block that only some see
    mask[:, -1] = 0
    return Cache(
        random.normal(0, 3, (tokens, heads * share, width)).astype(np.float32),
        random.normal(0, 1, (cells, heads, width)).astype(np.float16),
        random.normal(0, 1, (cells, heads, width)).astype(np.float16),
        mask,
    )


@pytest.mark.parametrize("shape", [{}, {"width": 128, "heads": 2}, {"heads": 1, "share": 7}, {"share": 1}])
@pytest.mark.parametrize(("tokens", "cells"), [(1, 64), (1, 512), (8, 320), (50, 256)])
def test_attention_is_that_of_the_numbers(
    kernel: Any, shape: dict[str, int], tokens: int, cells: int
) -> None:
    made = cache(tokens, cells, **shape)
    alone = made.attended(kernel)
    np.testing.assert_allclose(alone, made.expected(), rtol=0, atol=2e-5)
    for threads in (2, 5):
        np.testing.assert_array_equal(made.attended(kernel, threads), alone)


def test_attention_needs_no_mask_and_gives_nothing_to_who_sees_nothing(kernel: Any) -> None:
    made = replace(cache(4, 128), mask=None)
    np.testing.assert_allclose(made.attended(kernel), made.expected(), rtol=0, atol=2e-5)
    blind = replace(made, mask=np.full((4, 128), -np.inf, np.float16))
    np.testing.assert_array_equal(blind.attended(kernel), 0)


def test_what_a_token_does_not_see_does_not_matter_to_the_last_bit(kernel: Any) -> None:
    made = cache(3, 256)
    assert made.mask is not None
    unseen = np.all(made.mask == -np.inf, axis=0)
    assert 10 < unseen.sum() < unseen.size
    others = replace(made, keys=made.keys.copy(), values=made.values.copy())
    others.keys[unseen] = 100
    others.values[unseen] = -60_000
    np.testing.assert_array_equal(others.attended(kernel), made.attended(kernel))


@needs_kernel
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])  # the latter's attention is llama.cpp's own
async def test_the_logits_are_llama_cpps_but_for_rounding(
    kv_type: Literal["f16", "q8_0"],
    settings: Settings,
    model_paths: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("june.llm.llama_cpp.engine.cpu_format", lambda *_, **__: None)  # the same weights

    def work(engine: Forced) -> tuple[bool, Logits]:
        return engine.has_own_kernel, logits_of(engine, "fox", asks("fox"))

    logits = {}
    computing: tuple[Literal["llama.cpp", "auto"], ...] = ("llama.cpp", "auto")
    for kernel in computing:
        own = LlamaCppSettings(kernel=kernel, kv_type=kv_type)
        has_own_kernel, logits[kernel] = await with_engine(Forced, settings.llm, model_paths[LLM], work, own)
        assert has_own_kernel == (kernel == "auto")
    rounding = logits["auto"] - logits["llama.cpp"]
    assert 0 < np.sqrt(np.square(rounding).mean()) < 0.01 * np.ptp(logits["auto"])


@pytest.mark.parametrize("why", ["setting", "cpu", "not compiled", "another machine", "another llama.cpp"])
async def test_a_model_is_converted_for_llama_cpp_where_the_kernel_cannot_compute(
    why: str,
    settings: Settings,
    model_paths: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    own = DEFAULTS
    if why == "setting":
        own = LlamaCppSettings(kernel="llama.cpp")
    elif why == "cpu":
        monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx2"}))
    elif why == "another llama.cpp":
        monkeypatch.setattr(llama_overrides, "LLAMA_CPP_PYTHON", "0.0.1")
    else:
        library = tmp_path / "cpu.kernel"
        monkeypatch.setattr(kernels, "LLM", (kernels.Kernel(library, frozenset()),))
        if why == "another machine":
            library.write_bytes(b"\x7fELF of another kind")
    assert cpu_format(CATALOGUE[LLM], own, offloaded=False) == "Q8_0"
    assert cpu_format(CATALOGUE[LLM], own, offloaded=True) is None
    assert await whose_kernel(settings.llm, model_paths[LLM], own) == "llama.cpp"


@needs_kernel
async def test_the_kernel_computes_with_the_weights_as_they_come(
    settings: Settings, model_paths: dict[str, Path]
) -> None:
    assert cpu_format(CATALOGUE[LLM], DEFAULTS, offloaded=False) is None
    assert await whose_kernel(settings.llm, model_paths[LLM]) == "june"


async def whose_kernel(settings: LlmSettings, path: Path, own: LlamaCppSettings = DEFAULTS) -> object:
    """Whose computes, after an answer."""
    llm = LlamaCpp(settings, LocalModel(CATALOGUE[LLM], path), own)
    await llm.load()
    await llm.warm_up()
    kernel = llm.describe().details["kernel"]
    await llm.close()
    return kernel
