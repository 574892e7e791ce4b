"""The models of the serving bench as ONNX with seeded weights: overhead alone, some arithmetic, and what gains by batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class BenchModel:
    """A model and how many workers a server gets for it.

    Attributes:
        shape: of one sample.
        workers: processes, instances or lanes; a small model gains nothing from a second.
        data: the ONNX file.
    """

    name: str
    shape: tuple[int, ...]
    workers: int
    data: bytes

    @property
    def signature(self) -> dict[str, list[dict[str, object]]]:
        """As slipway.json has it."""
        inputs = [{"name": "x", "dtype": "float32", "shape": ["batch", *self.shape]}]
        return {"inputs": inputs, "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 10]}]}


class _Graph:
    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        scale = (2 / int(np.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.0
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def conv(self, x: str, channels: tuple[int, int], size: int, stride: int = 1) -> str:
        before, after = channels
        weights = (self.weight(after, before, size, size), self.weight(after))
        return self.add("Conv", x, *weights, strides=[stride, stride], pads=[size // 2] * 4)

    def dense(self, x: str, before: int, after: int) -> str:
        return self.add("Gemm", x, self.weight(after, before), self.weight(after), transB=1)

    def linear(self, x: str, before: int, after: int) -> str:
        """Along the last axis, whatever is before it."""
        weights = self.constant((self.random.standard_normal((before, after)) * before**-0.5).astype(np.float32))
        return self.add("MatMul", x, weights)

    def norm(self, x: str, width: int) -> str:
        return self.add("LayerNormalization", x, self.constant(np.ones(width, np.float32)), axis=-1)

    def attention(self, x: str, width: int, heads: int) -> str:
        split = self.constant(np.array([0, 0, heads, width // heads], np.int64))  # 0: as it was
        parts = [self.add("Reshape", self.linear(x, width, width), split) for _ in range(3)]
        orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        query, key, value = [self.add("Transpose", part, perm=order) for part, order in zip(parts, orders, strict=True)]
        scale = self.constant(np.array((width // heads) ** -0.5, np.float32))
        weights = self.add("Softmax", self.add("Mul", self.add("MatMul", query, key), scale), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.linear(self.add("Reshape", mixed, self.constant(np.array([0, 0, width], np.int64))), width, width)

    def model(self, shape: tuple[int, ...], output: str) -> bytes:
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        sides = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", *s])] for n, s in (("x", shape), ("y", (10,)))]
        graph = helper.make_graph(self.nodes, "g", *sides, self.weights)
        made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return made.SerializeToString()


def mlp() -> BenchModel:
    """64 → 256 → 10: 8 µs; what is measured is the server."""
    graph = _Graph()
    hidden = graph.add("Relu", graph.dense("x", 64, 256))
    return BenchModel("mlp", (64,), 1, graph.model((64,), graph.dense(hidden, 256, 10)))


def resnet18() -> BenchModel:
    """ResNet-18 on 3x64x64: some milliseconds, 48 KiB a request."""
    graph, shape = _Graph(), (3, 64, 64)
    half = graph.constant(np.array(0.5, np.float32))  # in place of the normalisation, so that values stay finite
    x = graph.add("Relu", graph.conv("x", (3, 64), 7, 2))
    x, before = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for stage, after in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            inner = graph.add("Relu", graph.conv(x, (before, after), 3, stride))
            short = x if stride == 1 and before == after else graph.conv(x, (before, after), 1, stride)
            x = graph.add("Relu", graph.add("Add", graph.add("Mul", graph.conv(inner, (after, after), 3), half), short))
            before = after
    flat = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return BenchModel("resnet18", shape, 2, graph.model(shape, graph.dense(flat, 512, 10)))


def encoder() -> BenchModel:
    """A transformer encoder of six layers, 64 wide, on 8 words: many small products, which batches make larger.

    In this process a row in a batch of 32 takes half the time of a row alone; at 128 wide and 16 words it gains 16 % only.
    """
    graph, width, words = _Graph(), 64, 8
    x = "x"
    for _ in range(6):
        x = graph.norm(graph.add("Add", x, graph.attention(x, width, heads=4)), width)
        inner = graph.linear(graph.add("Relu", graph.linear(x, width, 4 * width)), 4 * width, width)
        x = graph.norm(graph.add("Add", x, inner), width)
    pooled = graph.add("ReduceMean", x, axes=[1], keepdims=0)
    return BenchModel("encoder", (words, width), 1, graph.model((words, width), graph.dense(pooled, width, 10)))


MODELS = {"mlp": mlp, "resnet18": resnet18, "encoder": encoder}
