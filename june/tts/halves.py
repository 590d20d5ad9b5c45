"""A Piper voice cut in two: what ONNX Runtime computes of it, and what june's kernel does.

The second half is its flow and its vocoder, which take most of the time. What comes before it, from phonemes
to latents, stays with ONNX Runtime.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx.numpy_helper import to_array

from june.kernels.vits import REACH_MAX, TILE_CHANNELS, FlowAndVocoder


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


def split(path: Path, threads: int) -> tuple[bytes, FlowAndVocoder] | None:
    """Return a voice's first half, as an ONNX file that puts out latents, and its second.

    Returns None for what the kernel does not compute: voices of several speakers, voices of another quality
    than "low" and "medium", and files that are not a voice.

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
    """Return those of flow and vocoder, by their names in VITS' source.

    Where weights were folded, only the bias still has the name.
    """
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
    """Return whether the kernel computes a voice of these layers."""
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


def _kernel(layers: Mapping[str, _Layer], names: _Names, threads: int) -> FlowAndVocoder:
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
    return FlowAndVocoder(plan, arrays, samples_per_latent, threads)


def _flow_input(graph: onnx.GraphProto, first: onnx.NodeProto) -> str:
    """Return the name of what is flipped and split in two before the flow's first layer gets a half of it."""
    makers = {output: node for node in graph.node for output in node.output}
    name = str(first.input[0])
    while (maker := makers.get(name)) and maker.op_type in {"Split", "Slice"}:
        name = str(maker.input[0])
    return name


def _end_at(graph: onnx.GraphProto, output: str) -> None:
    """Leave in a graph only what `output` is computed from; no node may contain a graph of its own."""
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
