"""A real Prometheus with the chart's relabelling and rules: Triton and TorchServe have the names of the metrics of ours.

Their answers are those of their documentation (Triton's docs/user_guide/metrics.md, TorchServe's docs/metrics_api.md), with two requests of
the same model; ours is the server's own.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.analysis.test_prometheus import ROOT, running
from slipway_runtime.serve.gpu import Gpu
from slipway_runtime.serve.metrics import Metrics

FILES = ROOT / "charts/slipway/files/monitoring"
TRITON = """
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="resnet",version="1"} 40
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="resnet",reason="REJECTED",version="1"} 1
nv_inference_request_failure{model="resnet",reason="CANCELED",version="1"} 2
nv_inference_request_failure{model="resnet",reason="BACKEND",version="1"} 3
nv_inference_request_failure{model="resnet",reason="OTHER",version="1"} 4
# TYPE nv_inference_count counter
nv_inference_count{model="resnet",version="1"} 90
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="resnet",version="1"} 30
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="resnet",version="1"} 800000
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="resnet",version="1"} 200000
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{model="resnet",version="1"} 1000
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{model="resnet",version="1"} 400000
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{model="resnet",version="1"} 2000
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="resnet",version="1"} 7
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.25
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 8000
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 3000
"""
TORCHSERVE = """
# HELP Requests5XX Torchserve prometheus counter metric with unit: Count
# TYPE Requests5XX counter
Requests5XX{Level="Host",Hostname="88665a372f4b",} 2.0
# TYPE WorkerLoadTime gauge
WorkerLoadTime{WorkerName="W-9000-resnet18_1.0",Level="Host",Hostname="88665a372f4b",} 4593.0
WorkerLoadTime{WorkerName="W-9001-resnet18_1.0",Level="Host",Hostname="88665a372f4b",} 4592.0
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="resnet18",model_version="default",hostname="88665a372f4b",} 3.0
# TYPE ts_inference_latency_microseconds counter
ts_inference_latency_microseconds{model_name="resnet18",model_version="default",hostname="88665a372f4b",} 290371.129
# TYPE CPUUtilization gauge
CPUUtilization{Level="Host",Hostname="88665a372f4b",} 0.0
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{model_name="resnet18",model_version="default",hostname="88665a372f4b",} 365.21
# TYPE Requests2XX counter
Requests2XX{Level="Host",Hostname="88665a372f4b",} 8.0
# TYPE Requests4XX counter
Requests4XX{Level="Host",Hostname="88665a372f4b",} 1.0
"""
PATHS = {"slipway": "/metrics", "triton": "/metrics", "torchserve": "/own/metrics"}


def own() -> str:
    metrics = Metrics("m", "m-slipway", lambda: 5, lambda: [Gpu("GPU-b", 1000, 8000, 0.75)])
    for status in (200, 200, 500):
        metrics.count(status)
        metrics.seconds(0.02)
    for observe in (metrics.queue, metrics.inference, metrics.batch):
        observe(1)
    metrics.load_seconds.set(1.5)
    return metrics.render().decode()


def serve(path: str, text: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == path
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode() if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def target(runtime: str, port: int) -> dict[str, Any]:
    """What Prometheus finds out about a pod: its port `http`, here another one than that of the metrics, and what the operator wrote."""
    pod = "__meta_kubernetes_pod"
    meta = {
        f"{pod}_label_slipway_dev_deployment": "m",
        f"{pod}_label_slipway_dev_revision": f"m-{runtime}",
        f"{pod}_annotation_prometheus_io_port": str(port),
        f"{pod}_annotation_prometheus_io_path": PATHS[runtime],
    }
    return {"targets": ["127.0.0.1:1"], "labels": meta | {"namespace": "n", "pod": f"m-{runtime}-x"}}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Instant queries to a Prometheus that scrapes the three."""
    texts = {"slipway": own(), "triton": TRITON, "torchserve": TORCHSERVE}
    servers = {runtime: serve(PATHS[runtime], text) for runtime, text in texts.items()}
    relabelings = yaml.safe_load((FILES / "relabelings.yaml").read_text())
    targets = [target(runtime, server.server_port) for runtime, server in servers.items()]
    config = {
        # one scrape that is late ends all series of its target for that moment
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "500ms"},
        "rule_files": [str(FILES / "rules.yaml")],
        "scrape_configs": [{"job_name": "models", "static_configs": targets, **relabelings}],
    }

    def query(address: str, expression: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=10) as answer:
            return list(json.loads(answer.read())["data"]["result"])

    with running(tmp_path_factory.mktemp("prometheus"), yaml.safe_dump(config)) as address:
        end = time.monotonic() + 60
        while len(query(address, "slipway_model_load_seconds")) < 2 or len(query(address, "slipway_queue_duration_seconds_count")) < 3:
            assert time.monotonic() < end, Path(address).name
            time.sleep(0.5)
        yield lambda expression: query(address, expression)
    for server in servers.values():
        server.shutdown()


def value(rows: list[dict[str, Any]]) -> float:
    (row,) = rows
    return float(row["value"][1])


@pytest.mark.parametrize(
    ("expression", "triton", "torchserve"),
    [
        ('slipway_requests_total{code="200"}', 40, 3),
        ('sum(slipway_requests_total{code=~"4.."})', 2, 1),
        ('sum(slipway_requests_total{code=~"5.."})', 8, 2),
        ("slipway_request_duration_seconds_sum", 0.8, 0.290371),
        ("slipway_request_duration_seconds_count", 40, 3),
        ("slipway_queue_duration_seconds_sum", 0.2, 0.000365),
        ("slipway_queue_duration_seconds_count", 40, 3),
        ("slipway_inference_duration_seconds_sum", 0.4, 0.290006),
        ("slipway_inference_duration_seconds_count", 40, 3),
        ("slipway_batch_size_sum", 90, None),
        ("slipway_batch_size_count", 30, None),
        ("slipway_inflight_requests", 7, None),
        ("slipway_model_load_seconds", None, 4.593),
        ('slipway_gpu_utilization_ratio{gpu="GPU-a",gpu_uuid=""}', 0.25, None),
        ("slipway_gpu_memory_used_bytes", 3000, None),
        ("slipway_gpu_memory_total_bytes", 8000, None),
    ],
)
def test_the_numbers_of_others_have_our_names(
    ask: Callable[[str], list[dict[str, Any]]], expression: str, triton: float | None, torchserve: float | None
) -> None:
    for runtime, expected in (("triton", triton), ("torchserve", torchserve)):
        matcher = f'revision="m-{runtime}"'
        name, brace, rest = expression.partition("{")
        found = ask(f"{name}{{{matcher},{rest}" if brace else f"{expression}{{{matcher}}}")
        assert not found if expected is None else value(found) == pytest.approx(expected, rel=1e-3), runtime


@pytest.mark.parametrize("name", ["slipway_requests_total", "slipway_request_duration_seconds_sum", "slipway_queue_duration_seconds_count"])
def test_all_runtimes_have_the_same_labels(ask: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    rows = ask(f'{name}{{reason=""}}')
    assert {row["metric"]["revision"] for row in rows} == {"m-slipway", "m-triton", "m-torchserve"}
    assert len({tuple(sorted(row["metric"])) for row in rows}) == 1, rows
    assert {row["metric"]["model"] for row in rows} == {"m"}


def test_our_own_metrics_say_the_model_too_where_the_server_does_not(ask: Callable[[str], list[dict[str, Any]]]) -> None:
    (row,) = ask('slipway_inflight_requests{revision="m-slipway"}')
    assert row["metric"]["model"] == "m"
    assert [(row["metric"]["gpu"], row["metric"]["model"]) for row in ask('slipway_gpu_memory_used_bytes{revision="m-slipway"}')] == [
        ("GPU-b", "m")
    ]
    assert not ask('{exported_model=~".+"} or {exported_revision=~".+"}')


def test_every_target_answers(ask: Callable[[str], list[dict[str, Any]]]) -> None:
    assert [row["value"][1] for row in ask('up{job="models"}')] == ["1", "1", "1"]
