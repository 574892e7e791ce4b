"""How fast the operator turns ModelDeployments whose artifacts exist into Deployments, beside a minimal kopf operator.

    python tests/bench/reconcile_bench.py [--n 300] [--rounds 3]

Each round starts a bare API server (hack/apiserver.sh) for each of the two in turn. Printed: one JSON object a run (rate, latency from the
create request to the Deployment, requests an object from the audit log, CPU, start-up time and memory), and at the end the ratio of the
rates with its spread. The yardstick (minimal_operator.py) makes three writes and knows neither artifacts nor revisions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.snapshot import Config

ROOT = Path(__file__).parents[2]
GROUP = "/apis/slipway.dev/v1alpha1"
MDEPS = f"{GROUP}/namespaces/default/modeldeployments"
MARTS = f"{GROUP}/namespaces/default/modelartifacts"
WRITES = {"create", "update", "patch", "delete"}


def free_port() -> int:

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def model_deployment(index: int) -> dict[str, Any]:
    model = {"uri": "oci://registry:5000/models/bench:v1", "digest": f"sha256:{index:064x}"}
    return {
        "apiVersion": "slipway.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": f"bench-{index}", "namespace": "default"},
        "spec": {"model": model},
    }


def ready_status(index: int) -> dict[str, Any]:
    now = "2026-11-24T00:00:00Z"
    condition = {"type": "Ready", "status": "True", "reason": "Published", "message": "published", "lastTransitionTime": now}
    chosen = {
        "repository": "registry:5000/artifacts/default",
        "digest": f"sha256:{index:064x}",
        "sourceDigest": f"sha256:{index:064x}",
        "format": "ONNX",
        "precision": "Float32",
    }
    return {"observedGeneration": 1, "conditions": [condition | {"observedGeneration": 1}], **chosen}


class Api:
    """The few requests that the bench makes."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self.base = config["clusters"][0]["cluster"]["server"]
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}", "User-Agent": "bench"}
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Api:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.session = aiohttp.ClientSession(headers=self._headers, connector=aiohttp.TCPConnector(ssl=context, limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def send(self, verb: str, path: str, body: object = None) -> dict[str, Any]:
        async with self.session.request(verb, self.base + path, json=body) as response:
            answer = await response.json()
            if response.status >= 300 and response.status != 409:
                raise RuntimeError(f"{verb} {path}: {response.status} {answer.get('message')}")
            return dict(answer)

    async def watch(self, path: str, seen: dict[str, float], started: asyncio.Event) -> None:
        version = (await self.send("GET", path))["metadata"]["resourceVersion"]
        parameters = {"watch": "1", "resourceVersion": version}
        async with self.session.get(self.base + path, params=parameters, timeout=aiohttp.ClientTimeout(total=None)) as response:
            started.set()
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    for reference in event["object"]["metadata"].get("ownerReferences", ()):
                        seen.setdefault(reference["name"], time.perf_counter())


async def prepare(api: Api, count: int) -> None:
    """Create the Ready artifacts and the runtime that will serve them."""
    image = {"image": "slipway-runtime", "formats": [{"name": "ONNX"}], "args": ["serve"]}
    await api.send(
        "POST",
        f"{GROUP}/servingruntimes",
        {"apiVersion": "slipway.dev/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": "slipway"}, "spec": image},
    )

    async def one(index: int) -> None:
        spec = artifact_spec(model_deployment(index)["spec"], Config())
        manifest = await api.send("POST", MARTS, artifact_manifest("default", spec, [], None))
        if "spec" in manifest:
            await api.send("PUT", f"{MARTS}/{manifest['metadata']['name']}/status", {**manifest, "status": ready_status(index)})

    await spread(one, count, 16)


async def spread(work: Any, count: int, writers: int) -> None:
    todo = iter(range(count))

    async def writer() -> None:
        for index in todo:
            await work(index)

    await asyncio.gather(*(writer() for _ in range(writers)))


@asynccontextmanager
async def minimal_operator(kubeconfig: Path, log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run the yardstick until the block ends."""
    command = [sys.executable, "-m", "kopf", "run", "--standalone", "-n", "default", str(ROOT / "tests/bench/minimal_operator.py")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=out, stderr=out)
    try:
        await asyncio.sleep(4)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@asynccontextmanager
async def operator(api: Api, kubeconfig: Path, figures: dict[str, Any], log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run the operator until the block ends; wait until it leads and has seen everything."""
    metrics, health = free_port(), free_port()
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "SLIPWAY_METRICS_PORT": str(metrics), "SLIPWAY_HEALTH_PORT": str(health)}
    environment |= {"SLIPWAY_NAMESPACE": "default", "PYTHONPATH": str(ROOT / "operator/src")}
    begin = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "slipway.main"], env=environment, stdout=out, stderr=out)
    try:
        await until(api, f"http://127.0.0.1:{health}/readyz", "ok")
        figures["startup_seconds"] = round(time.perf_counter() - begin, 2)
        await until(api, f"http://127.0.0.1:{metrics}/metrics", "slipway_leader 1.0")
        figures["startup_to_leader_seconds"] = round(time.perf_counter() - begin, 2)
        figures["rss_mib_idle"] = memory(process.pid)
        yield process
    finally:
        process.terminate()
        process.wait(20)


async def until(api: Api, url: str, text: str, seconds: float = 60) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            async with api.session.get(url) as response:
                if response.status == 200 and text in await response.text():
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError(url)


def memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def operator_requests(audit: Path, since: int) -> Counter[str]:
    """Count the operator's requests by verb and resource, from the byte `since` of the audit log."""
    found: Counter[str] = Counter()
    with audit.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            event = json.loads(line)
            resource = event.get("objectRef") or {}
            if event["userAgent"].startswith(("slipway-operator", "minimal-operator", "kopf/")) and resource.get("resource") != "leases":
                sub = f"/{resource['subresource']}" if resource.get("subresource") else ""
                found[f"{event['verb']} {resource.get('resource')}{sub}"] += 1
    return found


async def settle(audit: Path, since: int, quiet: float = 4.0) -> Counter[str]:
    before = operator_requests(audit, since)
    for _ in range(30):
        await asyncio.sleep(quiet)
        now = operator_requests(audit, since)
        if now == before:
            break
        before = now
    return before


async def measure(kubeconfig: Path, name: str, count: int = 300, writers: int = 16, limit: float = 60.0) -> dict[str, Any]:
    figures: dict[str, Any] = {"operator": name, "objects": count, "load_average": os.getloadavg()[0]}
    audit, log = kubeconfig.parent / "audit.log", kubeconfig.parent / "operator.log"
    async with Api(kubeconfig) as api:
        if name == "slipway":
            await prepare(api, count)
        async with operator(api, kubeconfig, figures, log) if name == "slipway" else minimal_operator(kubeconfig, log) as process:
            await settle(audit, audit.stat().st_size, 3.0)
            seen: dict[str, float] = {}
            sent: dict[str, float] = {}
            started = asyncio.Event()
            task = asyncio.create_task(api.watch("/apis/apps/v1/namespaces/default/deployments", seen, started))
            await started.wait()
            pids = {"operator": process.pid} | {name: int((audit.parent / f"{name}.pid").read_text()) for name in ("apiserver", "etcd")}
            used = {name: cpu_seconds(pid) for name, pid in pids.items()}
            since, begin = audit.stat().st_size, time.perf_counter()

            async def create(index: int) -> None:
                sent[f"bench-{index}"] = time.perf_counter()
                await api.send("POST", MDEPS, model_deployment(index))

            await spread(create, count, writers)
            figures["api_creates_per_second"] = round(count / (time.perf_counter() - begin), 1)
            while len(seen) < count and time.perf_counter() - begin < limit:
                await asyncio.sleep(0.02)
            figures["cpu_ms_per_object"] = {name: round((cpu_seconds(pid) - used[name]) / count * 1000, 1) for name, pid in pids.items()}
            latencies = sorted(seen[name] - sent[name] for name in seen)
            figures["reconciled"] = len(seen)
            figures["objects_per_second"] = round(len(seen) / (max(seen.values(), default=begin + limit) - begin), 1)
            figures["p50_ms"] = round(latencies[len(latencies) // 2] * 1000) if latencies else None
            figures["p99_ms"] = round(latencies[int(len(latencies) * 0.99)] * 1000) if latencies else None
            requests = await settle(audit, since)
            task.cancel()
            figures["writes_per_object"] = round(sum(n for key, n in requests.items() if key.split()[0] in WRITES) / count, 2)
            figures["requests"] = dict(requests)
            figures["rss_mib_loaded"] = memory(process.pid)
    return figures


@contextmanager
def apiserver() -> Iterator[Path]:
    """Run an API server with our CRDs until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        script, kubectl = str(ROOT / "hack/apiserver.sh"), str(ROOT / "build/bin/kubectl")
        try:
            subprocess.run([script, "up", folder], check=True, stdout=subprocess.DEVNULL)
            kubeconfig = Path(folder) / "kubeconfig"
            for arguments in (
                ("apply", "--server-side", "-f", str(ROOT / "crds")),
                ("wait", "--for=condition=established", "crd", "--all"),
            ):
                subprocess.run([kubectl, "--kubeconfig", str(kubeconfig), *arguments], check=True, stdout=subprocess.DEVNULL)
            yield kubeconfig
        finally:
            subprocess.run([script, "down", folder], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writers", type=int, default=16)
    arguments = parser.parse_args()
    ratios = []
    for number in range(arguments.rounds):
        rates = {}
        for name in ("minimal", "slipway") if number % 2 == 0 else ("slipway", "minimal"):
            with apiserver() as kubeconfig:
                figures = asyncio.run(measure(kubeconfig, name, arguments.n, arguments.writers))
            print(json.dumps(figures), flush=True)
            rates[name] = figures["objects_per_second"]
        ratios.append(rates["slipway"] / rates["minimal"])
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"slipway / minimal operator, Deployments per second: {statistics.median(ratios):.2f} ({spread}, {len(ratios)} rounds)")


if __name__ == "__main__":
    main()
