"""The same canary by Slipway and by Argo Rollouts, on the same cluster, with the same pods and the same load.

    make bench-rollouts        needs the cluster of `make cluster images`
    rollout_bench.py run       appends a row a rollout to docs/benchmarks/rollouts.jsonl
    rollout_bench.py report    writes docs/benchmarks/rollouts.md from it

Four pods, steps of 25, 50 and 100 %, by numbers of replicas behind one Service, without analysis: what both can do. Argo's pods are copies
of those that Slipway makes, so servers, probes and drain are the same; its controller is release 1.10.1, built from its Go module and run
beside the cluster with its defaults. A round changes an environment variable, so that nothing is converted.

A step's time is counted from when it may begin (the change, or the end of the pause before) until the new revision has its share of the
ready endpoints of the Service, give or take ten points; at 100 % it has all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tour import Tour

from e2e.kit import CONTEXT, Cluster, Manifest, Namespace, drop_namespace, install, make_namespace, mdep, model_folder, until

ROOT = Path(__file__).parents[2]

ROWS, PAGE = ROOT / "docs/benchmarks/rollouts.jsonl", ROOT / "docs/benchmarks/rollouts.md"
REPLICAS, WEIGHTS, PAUSE = 4, (25, 50, 100), 15
CONNECTIONS, LIMIT = 16, 300
TOLERANCE = 0.1  # of a share
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
AGENTS = {"slipway": "slipway-operator", "argo": "rollouts-controller"}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


@dataclass
class Endpoints:
    """The ready endpoints of a Service by revision, and when they changed."""

    changes: list[tuple[float, Counter[str]]] = field(default_factory=list)

    @contextmanager
    def watched(self, space: Namespace, service: str) -> Iterator[None]:
        """Follow them by one watch."""
        cluster = space.cluster
        command = [str(ROOT / "build/bin/kubectl"), "--kubeconfig", str(cluster.kubeconfig), "--context", CONTEXT, "-n", space.name]
        command += ["get", "endpointslices", "-l", f"kubernetes.io/service-name={service}", "-w", "-o", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            threading.Thread(target=self._read, args=(process,), daemon=True).start()
            try:
                until(lambda: self.changes, 30)
                yield
            finally:
                process.terminate()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        text, decoder = "", json.JSONDecoder()
        for line in process.stdout:
            text += line
            if line != "}\n":  # kubectl indents: only the end of an object is at the margin
                continue
            found, _ = decoder.raw_decode(text.strip())
            text = ""
            self.changes.append((time.monotonic(), self._count(found)))

    @staticmethod
    def _count(found: Manifest) -> Counter[str]:
        ready = (e["targetRef"]["name"] for e in found.get("endpoints") or () if (e.get("conditions") or {}).get("ready"))
        return Counter(name.rpartition("-")[0] for name in ready)

    def reached(self, old: set[str], weight: int, since: float) -> float | None:
        """When the new revision first had about that weight, in seconds after `since`; None when it has not.

        Slipway leaves stable at its size and Argo does not, so that few pods make other shares of one weight.
        """
        for moment, counts in self.changes:
            before, total = sum(counts[name] for name in old), counts.total()
            is_there = before == 0 and total >= REPLICAS if weight == 100 else (total - before) / max(total, 1) >= weight / 100 - TOLERANCE
            if moment >= since and is_there:
                return moment - since
        return None

    @property
    def revisions(self) -> set[str]:
        """Who has ready endpoints now."""
        return set(self.changes[-1][1])


def slipway_wish(index: int) -> list[Manifest]:
    """The ModelDeployment of a round."""
    steps = [{"weight": weight, "duration": f"{PAUSE if weight < 100 else 1}s"} for weight in WEIGHTS]
    serving = {"replicas": REPLICAS, "env": [{"name": "ROUND", "value": str(index)}]}
    return [mdep("slipway", "configmap://v1", serving=serving, more={"rollout": {"steps": steps}})]


def argo_wish(template: Manifest, index: int) -> list[Manifest]:
    """The Rollout of a round with Slipway's pods, and its Service."""
    labels = {"app": "argo"}
    (server,) = template["spec"]["containers"]
    env = [variable for variable in server.get("env") or () if variable["name"] != "ROUND"] + [{"name": "ROUND", "value": str(index)}]
    pods = {"metadata": {"labels": labels}, "spec": {**template["spec"], "containers": [{**server, "env": env}]}}
    steps = [step for weight in WEIGHTS[:-1] for step in ({"setWeight": weight}, {"pause": {"duration": f"{PAUSE}s"}})]
    strategy = {"canary": {"maxSurge": 1, "maxUnavailable": 0, "steps": steps}}
    spec = {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "strategy": strategy, "template": pods}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": server["ports"][0]["containerPort"]}]}
    return [
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "argo"}, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "argo"}, "spec": service},
    ]


@contextmanager
def argo_controller(cluster: Cluster, log: Path) -> Iterator[None]:
    """Argo's controller with its defaults, beside the cluster; nobody else writes, so it need not elect a leader."""
    crds = sorted((ROOT / "build/crds").glob("argo-*-crd.yaml"))
    assert crds, "build/crds has none of Argo's: hack/tools.sh argo-rollouts"
    for crd in crds:
        cluster.kubectl("apply", "--server-side", "-f", str(crd))
    cluster.run("create", "namespace", "argo-rollouts")
    flags = ["--kubeconfig", str(cluster.kubeconfig), "--leader-elect=false", "--metricsPort", "28090", "--healthzPort", "28091"]
    with log.open("w") as file:
        process = subprocess.Popen([str(ROOT / "build/bin/rollouts-controller"), *flags], stdout=file, stderr=file)
        try:
            until(lambda: "Started" in log.read_text() or process.poll() is not None, 60)
            assert process.poll() is None, f"Argo's controller ended: {log.read_text()[-2000:]}"
            yield
        finally:
            process.terminate()
            process.wait(30)
    cluster.kubectl("delete", "namespace", "argo-rollouts", "--wait=false")
    for crd in crds:
        cluster.kubectl("delete", "-f", str(crd))


def rollout(tour: Tour, space: Namespace, name: str, change: Callable[[], None]) -> dict[str, Any]:
    """Change it under load; returns the row of this rollout."""
    endpoints = Endpoints()
    with endpoints.watched(space, name):
        until(lambda: endpoints.changes[-1][1].total() == REPLICAS, 120)
        old = endpoints.revisions
        url = f"http://{name}.{space.name}.svc/v2/models/slipway/infer"
        options = {"connections": CONNECTIONS, "seconds": LIMIT, "pause": 0.02, "limit": LIMIT}
        tour.start_load(space.name, json.dumps(BODY).encode(), url, options, content_type="application/json")
        time.sleep(5)
        wall, begin = time.time(), time.monotonic()
        change()
        until(lambda: endpoints.reached(old, 100, begin) is not None, LIMIT, lambda: space.kubectl("get", "pods,rs,events"))
        time.sleep(15)  # old pods drain, and the last writes are made
        moments = [endpoints.reached(old, weight, begin) for weight in WEIGHTS]
    tour.stop_load(space.name)
    counts = tour.end_load(space.name)
    steps = [moments[0], *(after - before - PAUSE for before, after in pairwise(moments))]
    own, everyone = writes(space, wall, AGENTS[name])
    return {
        "by": name,
        "seconds": {str(weight): round(step, 2) for weight, step in zip(WEIGHTS, steps, strict=True)},
        "total": round(moments[-1], 1),
        "writes": own,
        "writes_of_all": everyone,
        **{key: counts[key] for key in ("requests", "failed", "errors", "latency_ms", "connections_opened")},
    }


def writes(space: Namespace, since: float, agent: str) -> tuple[dict[str, int], int]:
    """What the controller wrote in the namespace by verb and resource, and all writes there were, but for the load and by the bench."""
    own: Counter[str] = Counter()
    everyone = 0
    for event in space.cluster.audit(since):
        reference = event.get("objectRef") or {}
        name = str(reference.get("name", ""))
        if reference.get("namespace") != space.name or event["verb"] not in WRITES or name == "load":
            continue
        if event["userAgent"].startswith(agent):
            own[f"{event['verb']} {reference.get('resource')}"] += 1
        everyone += not event["userAgent"].startswith("kubectl")
    return dict(own), everyone


def run(rounds: int) -> None:
    """Measure; the two take turns, and who begins changes with the round."""
    tour = Tour.from_environment()
    cluster = Cluster(ROOT / "build/kubeconfig", tour.images)
    os.environ.setdefault("KUBECONFIG", str(cluster.kubeconfig))
    install(cluster)
    space = make_namespace(cluster)
    try:
        space.apply(model_folder("v1"), *slipway_wish(0))
        revision = space.wait_ready("slipway")["status"]["stable"]["revision"]
        template = space.get("deployment", revision)["spec"]["template"]
        with argo_controller(cluster, ROOT / "build/argo-rollouts.log"):
            space.apply(*argo_wish(template, 0))
            until(lambda: space.get("rollout.argoproj.io", "argo").get("status", {}).get("phase") == "Healthy", 120)
            wishes = {"slipway": slipway_wish, "argo": lambda index: argo_wish(template, index)}
            for index in range(1, rounds + 1):
                for name in sorted(wishes, reverse=index % 2 == 1):
                    row = rollout(tour, space, name, lambda name=name, index=index: space.apply(*wishes[name](index)))
                    row |= {"round": index}
                    print(json.dumps(row), flush=True)
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                space.wait_ready("slipway")
            space.kubectl("delete", "rollout.argoproj.io", "argo")
    finally:
        drop_namespace(space)


def spread(values: list[float], digits: int = 1) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report() -> None:
    """Write the page."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in ROWS.read_text().splitlines():
        rows[json.loads(line)["by"]].append(json.loads(line))
    names = {"slipway": "Slipway", "argo": "Argo Rollouts"}
    table: list[tuple[str, Callable[[list[dict[str, Any]]], str]]] = [
        *((f"{weight} % reached after, s", lambda got, w=str(weight): spread([row["seconds"][w] for row in got])) for weight in WEIGHTS),
        ("writes of the controller", lambda got: spread([sum(row["writes"].values()) for row in got], 0)),
        ("writes of all", lambda got: spread([row["writes_of_all"] for row in got], 0)),
        ("requests", lambda got: f"{sum(row['requests'] for row in got):,}"),
        ("failed requests", lambda got: f"{sum(row['failed'] for row in got):,}"),
        ("p99, ms", lambda got: spread([row["latency_ms"]["p99"] for row in got])),
        ("rollouts", lambda got: str(len(got))),
    ]
    lines = [f"| {title} | " + " | ".join(cell(rows[name]) for name in names) + " |" for title, cell in table]
    what = {name: Counter[str]() for name in names}
    for name in names:
        for row in rows[name]:
            what[name].update(row["writes"])
    told = [
        f"- {title}: " + ", ".join(f"{count / len(rows[name]):.1f} {verb}" for verb, count in what[name].most_common())
        for name, title in names.items()
    ]
    errors = [f"- {names[name]}: {error}" for name in names for row in rows[name] for error in row["errors"][:3]]
    text = [
        "# A canary by Slipway and by Argo Rollouts",
        "",
        "`make bench-rollouts` ([the script](../../tests/bench/rollout_bench.py) says how it is measured): four pods, 25, 50 and 100 %,"
        f" {PAUSE} s each, by numbers of replicas,",
        f"the same pods and {CONNECTIONS} connections of load for both, on one kind cluster (2 shared cores). Argo Rollouts",
        "1.10.1 with its defaults. Median (least to most) of the rollouts.",
        "",
        f"| | {' | '.join(names.values())} |",
        "|---|---|---|",
        *lines,
        "",
        "Slipway leaves the stable revision at its size until the end, so that going back needs no new pod: 50 % are four pods more,",
        "where Argo replaces two by two. That makes its 50 % later and its 100 % sooner, and on few cores more pods cost latency.",
        "",
        "Writes of the controllers, a rollout:",
        "",
        *told,
        *(["", "The first errors of each rollout:", "", *errors] if errors else []),
        "",
    ]
    PAGE.write_text("\n".join(text))
    print(PAGE.relative_to(ROOT))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--rounds", type=int, default=3)
    commands.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.rounds)
    else:
        report()


if __name__ == "__main__":
    main()
