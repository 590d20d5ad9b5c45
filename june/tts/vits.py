"""The half of a Piper voice that takes most of its time, its flow and its vocoder, by june's own kernel.

vits.cpp computes it in bfloat16, which CPUs with AVX512-BF16 (Zen 4, Sapphire Rapids and later) do at twice
the rate of ONNX Runtime's float32. What comes before it, from phonemes to latents, stays with ONNX Runtime.
"""

import ctypes
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.ctypeslib import ndpointer
from numpy.typing import NDArray
from onnx.numpy_helper import to_array

from june import kernels

TILE_CHANNELS = 32
"""vits.cpp computes so many channels together; each array has a multiple of them."""
REACH_MAX = 4
"""Rows on either side that vits.cpp keeps free around what a convolution of the flow, or the first, reads."""


class StoppedError(Exception):
    """The kernel was told to stop."""


class Kernel:
    """The flow and the vocoder of one voice.

    Args:
        plan: their shape, as vits.cpp reads it.
        weights: those of each layer in turn, in ONNX's order.
        samples_per_latent: what upsampling makes of one.
        threads: CPU threads of one call.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(
        self,
        plan: Sequence[int],
        weights: Sequence[NDArray[np.float32]],
        samples_per_latent: int,
        threads: int,
    ) -> None:
        self._library = _library(kernels.VOICE.library)
        self._samples_per_latent = samples_per_latent
        self._threads = threads
        self._lock = threading.Lock()
        self._running = 0
        flat = np.concatenate([array.ravel() for array in weights], dtype=np.float32)
        self._voice = ctypes.c_void_p(self._library.vits_new(np.array(plan, np.int32), flat))
        weakref.finalize(self, self._library.vits_free, self._voice)

    def run(self, latents: NDArray[np.float32], stop: ctypes.c_int32) -> NDArray[np.float32]:
        """Samples from -1 to 1, float32 (n_samples,), of latents, float32 (n_channels, n_latents).

        It blocks, without the GIL; several may run at once.

        Args:
            latents: what ONNX Runtime computed of one sentence.
            stop: another thread sets it to 1 to end the call.

        Raises:
            StoppedError: `stop` ended it.
        """
        n_latents = latents.shape[1]
        samples = np.empty(n_latents * self._samples_per_latent, np.float32)
        arguments = np.ascontiguousarray(latents), n_latents, self._share(), samples, ctypes.byref(stop)
        try:
            if not self._library.vits_run(self._voice, *arguments):
                raise StoppedError
        finally:
            with self._lock:
                self._running -= 1
        return samples

    def _share(self) -> int:
        """The threads of a call that begins now: others need cores, too."""
        with self._lock:
            self._running += 1
            return max(1, self._threads // self._running)


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    integers, floats = ndpointer(np.int32, flags="C"), ndpointer(np.float32, flags="C")
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    library.vits_new.argtypes = [integers, floats]
    library.vits_new.restype = pointer
    library.vits_run.argtypes = [pointer, floats, number, number, floats, ctypes.POINTER(number)]
    library.vits_run.restype = ctypes.c_bool
    library.vits_free.argtypes = [pointer]
    library.vits_free.restype = None
    return library


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution of a voice, plain or transposed.

    Its kernel is (outputs, inputs, size), or transposed (inputs, outputs, size); the last one has no bias.
    """

    node: onnx.NodeProto
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def size(self) -> int:
        return int(self.kernel.shape[2])

    def attribute(self, name: str) -> int:
        return next((int(entry.ints[0]) for entry in self.node.attribute if entry.name == name), 1)


def split(path: Path, threads: int) -> tuple[bytes, Kernel] | None:
    """A voice's first half, as an ONNX file that puts out latents, and its second.

    None for what vits.cpp does not compute: voices of several speakers, or of other quality than "low" and
    "medium", and what is no voice at all.

    Raises:
        OSError: the file or the library cannot be read.
    """
    try:
        model = onnx.load(path)
    except DecodeError:
        return None
    layers = _layers(model.graph)
    names = _Names(layers)
    if not _is_known(layers, names):
        return None
    _end_at(model.graph, _flow_input(model.graph, layers[names.couplings[0][0]].node))
    return model.SerializeToString(), _kernel(layers, names, threads)


_LAYER = re.compile(r"(flow\.flows\.\d+\.[\w.]+|dec\.[\w.]+)\.(weight|bias)")


def _layers(graph: onnx.GraphProto) -> dict[str, _Layer]:
    """Those of flow and vocoder, by their names in VITS' source; where weights were folded, a bias has it."""
    arrays = {array.name: array for array in graph.initializer}
    layers = {}
    for node in graph.node:
        weights = node.input[1:]
        if (
            node.op_type in {"Conv", "ConvTranspose"}
            and (match := _LAYER.fullmatch(weights[-1]))
            and arrays.keys() >= set(weights)
        ):
            kernel, *bias = (to_array(arrays[name]) for name in weights)
            layers[match[1]] = _Layer(node, kernel, bias[0] if bias else None)
    return layers


class _Names:
    """What the layers of flow and vocoder are called, in the order in which they compute.

    The flow runs backwards, and only every other of its steps has layers.
    """

    def __init__(self, layers: Mapping[str, _Layer]) -> None:
        def count(pattern: str) -> int:
            return sum(bool(re.fullmatch(pattern, name)) for name in layers)

        couplings = count(r"flow\.flows\.\d+\.pre")
        stages = count(r"dec\.ups\.\d+")
        self.wavenet_layers = count(r"flow.*\.in_layers\.\d+") // max(couplings, 1)
        self.blocks = count(r"dec\.resblocks.*\.0") // max(stages, 1)
        self.couplings = [self._coupling(f"flow.flows.{2 * i}") for i in reversed(range(couplings))]
        self.stages = [self._stage(i) for i in range(stages)]
        self.all = [*chain(*self.couplings), "dec.conv_pre", *chain(*self.stages), "dec.conv_post"]

    def _coupling(self, name: str) -> list[str]:
        wavenet = [
            f"{name}.enc.{kind}_layers.{i}" for i in range(self.wavenet_layers) for kind in ("in", "res_skip")
        ]
        return [f"{name}.pre", *wavenet, f"{name}.post"]

    def _stage(self, stage: int) -> list[str]:
        blocks = range(stage * self.blocks, (stage + 1) * self.blocks)
        return [f"dec.ups.{stage}", *(f"dec.resblocks.{block}.convs.{i}" for block in blocks for i in (0, 1))]


def _is_known(layers: Mapping[str, _Layer], names: _Names) -> bool:
    """Whether vits.cpp computes a voice of these layers."""
    if list(layers) != names.all or not (names.wavenet_layers and names.blocks):
        return False
    biased = [layer for name, layer in layers.items() if name != "dec.conv_post"]
    near = [layer for name, layer in layers.items() if name.startswith(("flow.", "dec.conv_"))]
    return (
        names.wavenet_layers % 2 == 0
        and all(layer.bias is not None and layer.bias.size % TILE_CHANNELS == 0 for layer in biased)
        and layers["dec.conv_post"].bias is None
        and all(layer.attribute("dilations") * (layer.size // 2) <= REACH_MAX for layer in near)
        and all(layers[name].size == 2 * layers[name].attribute("strides") for name, *_ in names.stages)
    )


def _kernel(layers: Mapping[str, _Layer], names: _Names, threads: int) -> Kernel:
    first = layers["dec.conv_pre"]
    in_layer = layers[names.couplings[0][1]]
    plan = [first.kernel.shape[1], len(names.couplings), names.wavenet_layers, in_layer.size]
    plan += [first.kernel.shape[0], first.size, len(names.stages), names.blocks]
    samples_per_latent = 1
    for up, *convolutions in ([layers[name] for name in stage] for stage in names.stages):
        stride = up.attribute("strides")
        samples_per_latent *= stride
        plan += [up.kernel.shape[1], stride, up.size]
        for one, two in zip(convolutions[::2], convolutions[1::2], strict=True):
            plan += [one.size, one.attribute("dilations"), two.attribute("dilations")]
    plan.append(layers["dec.conv_post"].size)
    arrays = [array for layer in layers.values() for array in (layer.kernel, layer.bias) if array is not None]
    return Kernel(plan, arrays, samples_per_latent, threads)


def _flow_input(graph: onnx.GraphProto, first: onnx.NodeProto) -> str:
    """What is flipped and split in two before the flow's first layer gets a half of it."""
    makers = {output: node for node in graph.node for output in node.output}
    name = str(first.input[0])
    while (maker := makers.get(name)) and maker.op_type in {"Split", "Slice"}:
        name = str(maker.input[0])
    return name


def _end_at(graph: onnx.GraphProto, output: str) -> None:
    """Leave of a graph only what `output` is computed of; no node has a graph of its own in it."""
    needed = {output}
    nodes = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(node.input)
    arrays = [array for array in graph.initializer if array.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.output[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(arrays)
    graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
