"""How fast a candidate is, in a process of its own: load time, latency of one sample, and throughput at several batch sizes."""

from __future__ import annotations

import statistics
import time
from importlib import import_module
from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import SAMPLES, candidate_folder
from slipway_runtime.samples import Batch, batch_size, is_batched, read_batches
from slipway_runtime.serve.backends import load_backend
from slipway_runtime.serve.cgroup import cpu_limit
from slipway_runtime.settings import Settings
from slipway_runtime.validate.auction import noise_of
from slipway_runtime.validate.loaders import as_artifact

BATCH_SIZES = (1, 8, 32)  # what clients send, and servers form; a fixed batch has its own size only
_WARM_UP_RUNS, _WARM_UP_SECONDS = 10, 1.0
_ROUNDS = 5  # what they differ by is the noise, which only the auction of an objective asks for: one is enough without
_LATENCY_RUNS, _LATENCY_SECONDS = 100, 0.4  # of a round, whichever comes first
_THROUGHPUT_SECONDS = 0.1  # of a round
_LONGEST_CALL = 5.0  # seconds; a batch that would take longer is not tried: it would eat up the time of the other candidates


def measured(settings: Settings, converted: dict[str, Any], number: int, row: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """Load the candidate with the server's backend and measure it, on as many threads as this container may use.

    Returns:
        loadSeconds, latencies p50 and p99 in seconds, the best throughput in samples a second with its batch size, the throughput at each
        batch size, and both noises.

    Raises:
        Failure: when it cannot be loaded.
    """
    signature = Signature.from_json(converted["signature"])
    sample = read_batches(settings.candidates / SAMPLES)[0]
    import_module("onnxruntime" if built["format"] == "ONNX" else "torch")  # not part of the load time
    started = time.perf_counter()
    artifact = as_artifact(candidate_folder(settings.candidates, number, row["target"]), built, signature, row["precision"])
    backend = load_backend(artifact, cpu_limit())
    load_seconds = time.perf_counter() - started
    sizes = batch_sizes(batch_size(signature), settings.max_batch_size)
    rounds = _ROUNDS if settings.conversion.get("objective") else 1
    medians, calls = _latency(backend, resized(sample, signature, sizes[0]), rounds)
    throughput: dict[int, list[float]] = {}
    for size in sizes:
        if throughput and statistics.median(calls) * size / sizes[0] > _LONGEST_CALL:
            break
        throughput[size] = _throughput(backend, resized(sample, signature, size), size, rounds)
    best = max(throughput, key=lambda size: statistics.median(throughput[size]))
    backend.close()
    return {
        "loadSeconds": load_seconds,
        "latencyP50": statistics.median(calls),
        "latencyP99": float(np.percentile(calls, 99)),
        "latencyNoise": noise_of(medians),
        "throughput": statistics.median(throughput[best]),
        "throughputNoise": noise_of(throughput[best]),
        "batchSize": best,
        "throughputs": {str(size): statistics.median(rates) for size, rates in throughput.items()},
    }


def batch_sizes(fixed: int | None, largest: int | None) -> tuple[int, ...]:
    """Return the batch sizes to measure, ascending.

    Args:
        fixed: the only size that the signature allows; None: any.
        largest: what the server may put together (serving.batching.maxBatchSize), None when nobody said.
    """
    if fixed is not None:
        return (fixed,)
    return BATCH_SIZES if largest is None else (*(size for size in BATCH_SIZES if size < largest), largest)


def resized(batch: Batch, signature: Signature, size: int) -> Batch:
    """Return a batch of another size, its samples repeated as often as needed."""
    return {
        spec.name: np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) if is_batched(spec, signature) else array
        for spec in signature.inputs
        for array in (batch[spec.name],)
    }


def _latency(backend: Any, inputs: Batch, rounds: int) -> tuple[list[float], list[float]]:
    """Return the median of each round, and every call, in seconds."""
    _repeated(backend, inputs, _WARM_UP_RUNS, _WARM_UP_SECONDS)
    each = [_repeated(backend, inputs, _LATENCY_RUNS, _LATENCY_SECONDS) for _ in range(rounds)]
    return [statistics.median(calls) for calls in each], [call for calls in each for call in calls]


def _throughput(backend: Any, inputs: Batch, size: int, rounds: int) -> list[float]:
    """Return the samples a second of each round."""
    _repeated(backend, inputs, _WARM_UP_RUNS, _THROUGHPUT_SECONDS)
    each = [_repeated(backend, inputs, 1 << 30, _THROUGHPUT_SECONDS) for _ in range(rounds)]
    return [size * len(calls) / sum(calls) for calls in each]


def _repeated(backend: Any, inputs: Batch, runs: int, seconds: float) -> list[float]:
    calls: list[float] = []
    deadline = time.perf_counter() + seconds
    while not calls or (len(calls) < runs and time.perf_counter() < deadline):
        started = time.perf_counter()
        backend.infer(inputs)
        calls.append(time.perf_counter() - started)
    return calls
