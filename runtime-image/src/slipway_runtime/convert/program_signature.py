"""The signature that an exported program itself has, for a source without a declared one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.modelfile import DTYPES
from slipway_runtime.reasons import Failure


def program_signature(program: torch.export.ExportedProgram) -> Signature:
    """Return inputs and outputs with their dims: numbers, and names for those that vary (the first of the first input: batch).

    Raises:
        Failure: SignatureMissing when an input or output is no tensor of a type that is served.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    dims: dict[str, str] = {}
    inputs = tuple(_spec(name, nodes.get(str(name)), dims) for name in program.graph_signature.user_inputs)
    names = _output_names(program)
    if not inputs or len(names) != len(program.graph_signature.user_outputs):
        raise Failure("SignatureMissing", "the exported program has no tensors as inputs; declare a signature")
    outputs = tuple(_spec(name, nodes.get(str(node)), dims) for name, node in zip(names, program.graph_signature.user_outputs, strict=True))
    return Signature(inputs, outputs)


def _spec(name: Any, node: Any, dims: dict[str, str]) -> TensorSpec:
    value = node.meta.get("val") if node is not None else None
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if not isinstance(value, torch.Tensor) or dtype not in DTYPES:
        what = dtype or type(value).__name__
        raise Failure("SignatureMissing", f"{name} of the exported program is {what}; only tensors of numbers are served")
    shape = [size if isinstance(size, int) else _dim(str(size), str(name), axis, dims) for axis, size in enumerate(value.shape)]
    return TensorSpec(str(name), dtype, tuple(shape))


def _dim(size: str, name: str, axis: int, dims: dict[str, str]) -> str:
    """The same size has the same name everywhere."""
    return dims.setdefault(size, f"{name}_{axis}" if dims or axis else "batch")


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """Return the keys of a dict, in the order of the graph's outputs; else output, or output_0, output_1 and so on."""
    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec) if spec is not None else None
    if isinstance(tree, dict) and sorted(map(str, tree.values())) == sorted(map(str, range(count))):
        return [str(key) for key, _ in sorted(tree.items(), key=lambda item: item[1])]
    return ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
