"""A module on the GPU: what is computed goes through one stream, in order; what is copied goes beside it, one stream a lane.

While one batch computes, the next is copied in and the last one out. Host memory of every copy is page-locked, so that copies run by
themselves. A model that is launched kernel by kernel costs more in launches than in arithmetic when batches are small; where the
signature fixes all dims but the batch, the launches of a batch size are recorded once as a CUDA graph and replayed
(docs/design/0015-gpu.md, docs/benchmarks/gpu.md).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from slipway_runtime.artifact import Artifact, Signature
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.pytorch import TorchBackend, as_tensor
from slipway_runtime.serve.device import LANES
from slipway_runtime.serve.tensors import Array, Tensors

log = logging.getLogger(__name__)

GRAPHS = "SLIPWAY_CUDA_GRAPHS"
MAX_GRAPH_ROWS = 64  # beyond it, kernels take longer than their launches
_WARM_UP_CALLS = 3  # lazy initialization, TorchScript's profiling, compilation; a graph must not record them


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded call: write `inputs`, replay, read `outputs` (by name)."""

    graph: Any
    inputs: list[torch.Tensor]
    outputs: dict[str, torch.Tensor]


class CudaBackend(TorchBackend):
    """A callable module whose weights are on the GPU."""

    lanes = LANES

    def __init__(self, module: Any, artifact: Artifact, threads: int, platform: str) -> None:
        """Take a callable in eval mode."""
        super().__init__(module, artifact, threads, platform)
        self._compute = torch.cuda.Stream()
        self._launching = threading.Lock()  # one thread at a time puts work on the stream
        self._lane = threading.local()
        self._graphs: dict[tuple[tuple[int, ...], ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._kind = graph_kind(artifact.signature) if graphs_wanted(os.environ.get(GRAPHS)) else "none"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Page-locked memory: what is written there is the one copy of a batch on the host."""
        return _page_locked(shape, dtype)

    def infer(self, inputs: Tensors) -> Tensors:
        """Copy in, compute, copy out; the GIL is free while it waits."""
        copying = self._copying()
        with torch.inference_mode():
            hosts = [_locked(inputs[name]) for name in self._inputs]
            with torch.cuda.stream(copying):
                staged = [host.to("cuda", non_blocking=True) for host in hosts]
                arrived = copying.record_event()
            with self._launching, torch.cuda.stream(self._compute):
                self._compute.wait_event(arrived)
                results = self._computed(staged)
                computed = self._compute.record_event()
            with torch.cuda.stream(copying):
                copying.wait_event(computed)
                answers = {name: _to_host(tensor) for name, tensor in results.items()}
                copying.record_event().synchronize()
            # Only now may what the other stream works on be freed: the allocator knows the stream of the allocation only.
            del staged, results
        return {name: tensor.numpy() for name, tensor in answers.items()}

    def close(self) -> None:
        """Free the module and what was recorded."""
        self._graphs.clear()
        super().close()

    def _copying(self) -> Any:
        stream = getattr(self._lane, "stream", None)
        if stream is None:
            stream = self._lane.stream = torch.cuda.Stream()
        return stream

    def _computed(self, staged: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = staged[0].shape[0] if staged[0].ndim else 1
        size = graph_rows(self._kind, rows)
        if size is None:
            return dict(self._named(self._module(*staged)))
        shapes = tuple((size, *tensor.shape[1:]) if self._kind == "rows" else tuple(tensor.shape) for tensor in staged)
        graph = self._graphs.get(shapes) or self._recorded(shapes, staged)
        if graph is None:
            return dict(self._named(self._module(*staged)))
        _fill(graph.inputs, staged, rows, self._kind)
        graph.graph.replay()
        return {name: (tensor[:rows] if self._kind == "rows" else tensor).clone() for name, tensor in graph.outputs.items()}

    def _recorded(self, shapes: tuple[tuple[int, ...], ...], staged: list[torch.Tensor]) -> _Graph | None:
        """Record a call of these shapes; when the module cannot be recorded, do without graphs from here on."""
        inputs = [tensor.new_zeros(shape) for tensor, shape in zip(staged, shapes, strict=True)]
        _fill(inputs, staged, len(staged[0]) if staged[0].ndim else 1, self._kind)
        for _ in range(_WARM_UP_CALLS):
            wanted = self._named(self._module(*inputs))
        try:
            graph = self._graphs[shapes] = self._record(inputs, wanted)
        except RuntimeError as error:
            log.warning("no CUDA graphs: %s", str(error).splitlines()[0])
            self._kind = "none"
            return None
        return graph

    def _record(self, inputs: list[torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> _Graph:
        """Record a call and hold its replay against `wanted`; raises RuntimeError."""
        if self._kind == "rows" and len(inputs[0]) > 1 and not self._rows_are_independent(inputs):
            raise RuntimeError("a row's outputs depend on the rows beside it, so that none may be added to fill a batch")
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording, pool=self._pool, stream=self._compute, capture_error_mode="thread_local"):
            outputs = dict(self._named(self._module(*inputs)))
        recording.replay()
        different = [name for name, tensor in outputs.items() if not _alike(tensor, wanted[name])]
        if different:
            raise RuntimeError(f"a replay gives other values of {', '.join(different)} than the model")
        return _Graph(recording, inputs, outputs)

    def _rows_are_independent(self, inputs: list[torch.Tensor]) -> bool:
        """Whether the first row gives alone what it gives beside rows of zeros."""
        alone = self._named(self._module(*(tensor[:1] for tensor in inputs)))
        beside = self._named(self._module(*(torch.cat([tensor[:1], torch.zeros_like(tensor[1:])]) for tensor in inputs)))
        return all(tensor.shape[0] == 1 and _alike(beside[name][:1], tensor) for name, tensor in alone.items())


def graphs_wanted(word: str | None) -> bool:
    """Read SLIPWAY_CUDA_GRAPHS, true by default; raises Failure InvalidArguments for anything but true and false."""
    if word not in (None, "", "true", "false"):
        raise Failure("InvalidArguments", f"{GRAPHS} must be true or false, got {word!r}")
    return word != "false"


def graph_kind(signature: Signature) -> str:
    """Say what calls of a model have in common: `fixed`, all shapes; `rows`, all but the batch, named first everywhere; else `none`."""
    if all(isinstance(dim, int) for spec in signature.inputs for dim in spec.shape):
        return "fixed"
    firsts = {spec.shape[0] if spec.shape else None for spec in (*signature.inputs, *signature.outputs)}
    is_fixed_behind = all(isinstance(dim, int) for spec in signature.inputs for dim in spec.shape[1:])
    return "rows" if is_fixed_behind and len(firsts) == 1 and isinstance(next(iter(firsts)), str) else "none"


def graph_rows(kind: str, rows: int) -> int | None:
    """Return the rows of the graph that serves a batch, the next power of two, or None when none does."""
    if kind == "none" or rows > MAX_GRAPH_ROWS:
        return None
    return rows if kind == "fixed" else 1 << (rows - 1).bit_length()


def _fill(targets: list[torch.Tensor], sources: list[torch.Tensor], rows: int, kind: str) -> None:
    # Rows behind the batch keep what an earlier one left: the outputs of rows do not depend on each other.
    for target, source in zip(targets, sources, strict=True):
        (target[:rows] if kind == "rows" else target).copy_(source, non_blocking=True)


def _alike(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two runs of the same kernels, or of kernels for another batch size, agree; 16 bits resolve 1 % of the largest value."""
    got, wanted = got.double(), wanted.double()
    scale = float(wanted.abs().nan_to_num().max()) if wanted.numel() else 0.0
    return bool(torch.allclose(got, wanted, rtol=1e-2, atol=1e-2 * max(1e-6, scale), equal_nan=True))


def _page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape)) * dtype.itemsize
    array: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
    return array


def _locked(array: Array) -> torch.Tensor:
    tensor = as_tensor(array)
    return tensor if tensor.is_pinned() else torch.empty_like(tensor, pin_memory=True).copy_(tensor)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
