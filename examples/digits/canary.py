"""The canary that `make demo-canary` shows: 10, 50 and 100 % behind a real gateway, under load, with every request counted.

It needs what the tour of demo.py needs, and a Gateway (hack/gateway.sh). Shown and drawn (build/canary.png): who answered in each second,
the weights that were wanted, and how long the slowest answers took. Exit code 1 when a request failed, a share lies outside the binomial
99 % interval of its weight, or there were fewer requests than asked for. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import matplotlib as mpl
import yaml
from demo import NAME, NAMESPACE, OUT, install, picture_of, prepare, push, sample, train
from scipy.stats import binom
from tour import HERE, ROOT, Failed, Tour

mpl.use("Agg")
from matplotlib import pyplot as plt

STEPS = ({"weight": 10, "duration": "60s"}, {"weight": 50, "duration": "60s"}, {"weight": 100, "duration": "30s"})
REQUESTS, CONNECTIONS, BEFORE, LIMIT = 50_000, 16, 10, 1200
LEVEL = 0.99
SETTLE = 3  # seconds that a gateway gets until a new weight counts
PICTURE = ROOT / "build/canary.png"


@dataclass(frozen=True)
class Step:
    """A weight and when it held, in seconds of the load."""

    weight: int
    begin: float
    end: float


def manifest(version: str) -> dict[str, Any]:
    """The example's manifest with a gateway and a rollout."""
    file = "modeldeployment.yaml" if version == "v1" else "modeldeployment-v2.yaml"
    document = dict(yaml.safe_load((HERE / file).read_text()))
    document["metadata"]["namespace"] = NAMESPACE
    analysis = {"interval": "10s", "metrics": [{"name": "error-rate", "maximum": "0.01"}]}
    document["spec"] |= {
        "routing": {"gateway": {"name": "gateway", "namespace": "gateway"}},
        "rollout": {"steps": list(STEPS), "analysis": analysis},
    }
    return document


def serve_first(tour: Tour) -> str:
    """v1 behind the gateway; returns the address for the load."""
    tour.apply(manifest("v1"))
    tour.wait_ready(NAMESPACE, NAME)
    return f"{tour.run(str(ROOT / 'hack/gateway.sh'), 'url').strip()}/v2/models/{NAME}/predict"


def canary(tour: Tour, url: str) -> dict[str, Any]:
    """Roll v2 out under load; returns the counts with the steps as they were."""
    before = tour.stable(NAMESPACE, NAME)
    options = {"connections": CONNECTIONS, "seconds": LIMIT, "requests": REQUESTS, "pause": 0.02, "limit": LIMIT}
    tour.start_load(NAMESPACE, sample().read_bytes(), url, options)
    tour.sleep(BEFORE)
    tour.apply(manifest("v2"))
    starts = watch(tour, before)
    tour.wait_ready(NAMESPACE, NAME)
    after = tour.stable(NAMESPACE, NAME)
    tour.require(after != before, f"revision {before} is still stable")
    tour.say(f"promoted; the load goes on until it has sent {REQUESTS} requests")
    tour.stop_load(NAMESPACE)
    counts = tour.end_load(NAMESPACE)
    tour.say(picture_of(counts, (before, after)))
    moments = [*(start - counts["started_at"] for start in starts.values()), counts["seconds"]]
    steps = [Step(weight, *span) for weight, span in zip(starts, pairwise(moments), strict=True)]
    tour.require([step.weight for step in steps] == [10, 50, 100], f"the weights were {list(starts)}")
    for step in steps:
        tour.say(check_share(tour, step, counts["timeline"], after))
    tour.require(counts["failed"] == 0, f"{counts['failed']} of {counts['requests']} requests failed: {counts['errors']}")
    tour.require(counts["requests"] >= REQUESTS, f"only {counts['requests']} requests")
    draw(counts, steps, (before, after))
    tour.say(f"drawn: {PICTURE.relative_to(ROOT)}")
    return counts


def watch(tour: Tour, before: str) -> dict[int, float]:
    """Show each step and its verdicts; returns when each weight began, in seconds since 1970."""
    starts: dict[int, float] = {}
    shown, end = "", time.monotonic() + 600
    while time.monotonic() < end:
        status = tour.get(NAMESPACE, "mdep", NAME)["status"]
        row = status.get("canary") or {}
        if row.get("phase") == "RolledBack":
            raise Failed(f"rolled back: {row.get('reason')}: {row.get('message')}")
        if row.get("stepStartedAt") and row.get("weight"):
            starts.setdefault(row["weight"], datetime.fromisoformat(row["stepStartedAt"]).timestamp())
        rates = ", ".join(f"{m['name']} {m.get('value', '?')} of {m.get('samples', '?')}: {m['verdict']}" for m in row.get("metrics") or ())
        line = f"{row.get('phase')}, weight {row.get('weight', 0)} %  {rates}"
        if row and line != shown:
            tour.say(line)
            shown = line
        if status["stable"]["revision"] != before:
            starts.setdefault(100, datetime.fromisoformat(status["stable"]["since"]).timestamp())
            return starts
        time.sleep(0.5)
    raise Failed("the rollout did not end within 600 s")


def check_share(tour: Tour, step: Step, timeline: dict[str, dict[str, int]], after: str) -> str:
    """Compare the share of the new revision in a step with its weight; `timeline` has who answered in each second."""
    inside = [timeline.get(str(second), {}) for second in range(int(step.begin) + 1 + SETTLE, int(step.end))]
    count = sum(sum(row.values()) for row in inside)
    got = sum(row.get(after, 0) for row in inside)
    low, high = binom.interval(LEVEL, count, step.weight / 100)
    fits = count > 0 and low <= got <= high
    share = f"{got} of {count} requests, {100 * got / max(count, 1):.2f} %"
    text = f"weight {step.weight:3} %: {share}; binomial {LEVEL:.0%} interval {low:.0f} to {high:.0f}"
    tour.require(fits, f"share outside its interval: {text}")
    return text


def draw(counts: dict[str, Any], steps: list[Step], revisions: tuple[str, str]) -> None:
    """Draw shares and slowest answers over time."""
    seconds = sorted(int(key) for key in counts["timeline"])
    figure, (shares, slow) = plt.subplots(2, 1, figsize=(12, 6), sharex=True, constrained_layout=True)
    looks = ((revisions[0], "#3b6ea5", "-"), (revisions[1], "#d1702c", "-"))
    for revision, colour, style in looks:
        rows = [counts["timeline"][str(second)] for second in seconds]
        part = [100 * row.get(revision, 0) / max(sum(row.values()), 1) for row in rows]
        shares.plot(seconds, part, style, color=colour, label=f"answered by {revision}")
        p99 = [(s, counts["p99_ms"][str(s)][revision]) for s in seconds if revision in counts["p99_ms"].get(str(s), {})]
        slow.plot(*zip(*p99, strict=True), style, color=colour, label=revision)
    for step in steps:
        shares.hlines(step.weight, step.begin, step.end, colors="black", linestyles="dashed", label="weight" if step is steps[0] else None)
        for axis in (shares, slow):
            axis.axvline(step.begin, color="grey", linewidth=0.6)
    failed = [second for second in seconds if counts["timeline"][str(second)].get("failed")]
    shares.plot(failed, [0] * len(failed), "rx", label=f"failed requests: {counts['failed']}")
    shares.set(ylabel="share of the requests, %", ylim=(-3, 103), title=f"{counts['requests']:,} requests, {counts['failed']} failed")
    slow.set(ylabel="p99 of each second, ms", xlabel="seconds of load", ylim=(0, None))
    shares.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> int:
    """Run the canary; returns the exit code."""
    tour = Tour.from_environment()
    counts: dict[str, Any] = {"requests": 0, "failed": 0}
    try:
        tour.step("install the chart", install)
        tour.step("install a gateway", lambda t: t.say(t.run(str(ROOT / "hack/gateway.sh"), "up", timeout=900)))
        if not (OUT / "v2/model.yaml").exists():
            tour.step("train two versions", train)
        tour.step("clean up", prepare)
        for version in ("v1", "v2"):
            tour.step(f"push {version}", lambda t, version=version: push(t, version))
        url = tour.step("convert and serve v1", serve_first)
        counts = tour.step("canary of v2 under load", lambda t: canary(t, url))
    except (Failed, subprocess.TimeoutExpired) as failure:
        tour.failures.append(str(failure))
    for failure in tour.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    print(json.dumps({"requests": counts["requests"], "failed": counts["failed"], "seconds": tour.seconds}), flush=True)
    return 1 if tour.failures else 0


if __name__ == "__main__":
    sys.exit(main())
