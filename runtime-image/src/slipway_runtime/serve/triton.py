"""Triton's extensions of the Open Inference Protocol that tell about a model: configuration, statistics, index. Pure functions."""

from __future__ import annotations

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.serve.batching import QueueOptions
from slipway_runtime.serve.metrics import Buckets, Metrics
from slipway_runtime.serve.tensors import DATATYPES

SERVER = "slipway-runtime"
EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "schedule_policy", "statistics"]

Json = dict[str, object]


def index(name: str, revision: str, phase: str) -> list[Json]:
    """The repository: one model."""
    state = {"loading": "LOADING", "ready": "READY"}.get(phase, "UNAVAILABLE")
    return [{"name": name, "version": revision, "state": state, "reason": "" if state == "READY" else phase}]


def config(name: str, signature: Signature, platform: str, options: QueueOptions) -> Json:
    """The model configuration: what a client needs to build requests (max_batch_size 0: shapes include every dimension)."""
    batching: Json = {}
    if options.max_batch > 1:
        batching = {"dynamic_batching": {"max_queue_delay_microseconds": round(options.max_delay * 1e6)}}
    return {
        "name": name,
        "platform": platform,
        "backend": platform.split("_", 1)[0],
        "max_batch_size": 0,
        "input": [_tensor(spec) for spec in signature.inputs],
        "output": [_tensor(spec) for spec in signature.outputs],
        "instance_group": [{"name": f"{name}_0", "kind": "KIND_CPU", "count": options.lanes}],
        **batching,
    }


def _tensor(spec: TensorSpec) -> Json:
    datatype = DATATYPES[spec.dtype]
    return {
        "name": spec.name,
        "data_type": f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}",
        "dims": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
    }


def statistics(name: str, revision: str, metrics: Metrics) -> Json:
    """Counts and summed nanoseconds since the start."""
    metrics = metrics.whole()
    failed = sum(count for code, count in metrics.requests.counts.items() if code != 200)
    rows = {
        "success": {"count": metrics.requests.counts.get(200, 0), "ns": nanoseconds(metrics.seconds_buckets)},
        "fail": {"count": failed, "ns": 0},
        "queue": {"count": metrics.queue_buckets.count, "ns": nanoseconds(metrics.queue_buckets)},
        "compute_infer": {"count": metrics.inference_buckets.count, "ns": nanoseconds(metrics.inference_buckets)},
    }
    row = {
        "name": name,
        "version": revision,
        "inference_count": round(metrics.batch_buckets.total),
        "execution_count": metrics.batch_buckets.count,
        "inference_stats": rows,
        "batch_stats": [],
    }
    return {"model_stats": [row]}


def nanoseconds(buckets: Buckets) -> int:
    """The sum of a histogram of seconds."""
    return round(buckets.total * 1e9)
