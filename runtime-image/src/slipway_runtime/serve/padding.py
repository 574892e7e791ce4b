"""One batch of several requests, and how those of different lengths share it: padding. Pure functions on numpy arrays.

Padding is only done where the signature says with what (`pad` of an input), and only for a model that was seen to answer a padded row
like the row alone (`model.load_model`). Requests share a batch when their lengths are equal after rounding up to a power of two, so that at
least half of what is computed was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature, TensorSpec, padded_dims, takes_batches
from slipway_runtime.serve.tensors import Array, Tensors

Shape = tuple[int, ...]
Empty = Callable[[Shape, np.dtype[Any]], Array]


@dataclass(frozen=True, slots=True)
class Padding:
    """Where the tensors of a model have lengths that differ from request to request.

    Attributes:
        fills: for each input that is padded, the value.
        inputs: for each such input, its axes and the names of their dimensions.
        outputs: for each output that is to be cut back, likewise.
    """

    fills: Mapping[str, int]
    inputs: Mapping[str, tuple[tuple[int, str], ...]]
    outputs: Mapping[str, tuple[tuple[int, str], ...]]

    @classmethod
    def of(cls, signature: Signature) -> Padding | None:
        """What the signature allows; None when it allows no padding."""
        dims = padded_dims(signature)
        if not dims or not takes_batches(signature):
            return None
        fills = {spec.name: spec.pad for spec in signature.inputs if spec.pad is not None}
        sides = ({spec.name: axes for spec in specs if (axes := _axes(spec, dims))} for specs in (signature.inputs, signature.outputs))
        return cls(fills, *sides)

    def lengths(self, inputs: Tensors) -> dict[str, int]:
        """The size of each padded dimension in a request."""
        return {name: inputs[tensor].shape[axis] for tensor, axes in self.inputs.items() for axis, name in axes}

    def key(self, inputs: Tensors) -> tuple[Shape, ...]:
        """What requests of one batch have in common: the shapes without the batch dimension, lengths rounded up to a power of two."""
        return tuple(self._rounded(name, array.shape) for name, array in inputs.items())

    def _rounded(self, name: str, shape: Shape) -> Shape:
        axes = {axis for axis, _ in self.inputs.get(name, ())}
        return tuple(1 << (size - 1).bit_length() if axis in axes else size for axis, size in enumerate(shape) if axis)

    def shape(self, name: str, parts: Sequence[Array]) -> Shape:
        """The shape of a batch: the rows of all, each length that of the longest."""
        axes = {axis for axis, _ in self.inputs.get(name, ())}
        longest = (max(sizes) if axis in axes else sizes[0] for axis, sizes in enumerate(zip(*(part.shape for part in parts), strict=True)))
        return (sum(map(len, parts)), *tuple(longest)[1:])

    def cut(self, outputs: Tensors, lengths: Mapping[str, int]) -> Tensors:
        """The outputs of a request without those of the padding; views."""
        return {name: _cut(array, self.outputs.get(name, ()), lengths) for name, array in outputs.items()}

    def shortened(self, inputs: Tensors, lengths: Mapping[str, int]) -> Tensors:
        """The inputs cut to shorter lengths; views."""
        return {name: _cut(array, self.inputs.get(name, ()), lengths) for name, array in inputs.items()}


@dataclass(frozen=True, slots=True)
class Joiner:
    """Makes one batch of several requests, and several answers of one.

    Attributes:
        padding: None when only equal shapes may share a batch.
        empty: makes the memory of a batch.
    """

    padding: Padding | None = None
    empty: Empty = np.empty

    def key(self, inputs: Tensors) -> tuple[Shape, ...]:
        """What requests of one batch have in common."""
        return tuple(array.shape[1:] for array in inputs.values()) if self.padding is None else self.padding.key(inputs)

    def joined(self, made: Sequence[Tensors]) -> Tensors:
        """One batch of several requests of the same key: the one copy of their tensors."""
        padding, batch = self.padding, {}
        for name, first in made[0].items():
            parts = [inputs[name] for inputs in made]
            if padding is None or name not in padding.fills:
                target = self.empty((sum(map(len, parts)), *first.shape[1:]), first.dtype)
                np.concatenate(parts, out=target)
            else:
                target = self.empty(padding.shape(name, parts), first.dtype)
                _fill(target, parts, padding.fills[name])
            batch[name] = target
        return batch

    def parted(self, outputs: Tensors, made: Sequence[Tensors]) -> Iterator[Tensors]:
        """What each request gets of the batch's outputs; views."""
        ends = [0, *accumulate(len(next(iter(inputs.values()))) for inputs in made)]
        for inputs, (start, end) in zip(made, pairwise(ends), strict=True):
            rows = {name: array[start:end] for name, array in outputs.items()}
            yield rows if self.padding is None else self.padding.cut(rows, self.padding.lengths(inputs))


def _fill(target: Array, parts: Sequence[Array], value: int) -> None:
    start = 0
    for part in parts:
        rows = target[start : start + len(part)]
        if part.shape[1:] != rows.shape[1:]:
            rows[...] = value
        rows[tuple(map(slice, part.shape))] = part
        start += len(part)


def _axes(spec: TensorSpec, dims: frozenset[str]) -> tuple[tuple[int, str], ...]:
    return tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, str) and dim in dims)


def _cut(array: Array, axes: Sequence[tuple[int, str]], lengths: Mapping[str, int]) -> Array:
    if not axes:
        return array
    ends: list[slice] = [slice(None)] * array.ndim
    for axis, name in axes:
        ends[axis] = slice(lengths[name])
    return array[tuple(ends)]
