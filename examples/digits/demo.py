"""The tour that `make demo` runs: install, train, push, convert, serve, ask, and roll out a second version under load.

It needs a cluster in $KUBECONFIG (default build/kubeconfig) and build/images.env; `make cluster images` makes both. It can be run again:
what an earlier run left is replaced. Exit code 1 when a promise was not kept. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import requests
from tour import HERE, ROOT, Failed, Tour

NAMESPACE, NAME = "digits-demo", "digits"
REPOSITORY = "oci://slipway-registry.slipway-system:5000/models/digits"
CHART_IMAGES = {
    "operator.image": "SLIPWAY_OPERATOR_IMAGE",
    "runtime.image": "SLIPWAY_RUNTIME_IMAGE",
    "runtime.torchImage": "SLIPWAY_RUNTIME_TORCH_IMAGE",
    "registry.image": "SLIPWAY_REGISTRY_IMAGE",
}
MIN_ACCURACY_PERCENT = 95.0
CONNECTIONS, LOAD_SECONDS, UPDATE_AFTER, SETTLE_SECONDS = 16, 60, 10, 15
OUT = ROOT / "build/digits"


def install(tour: Tour) -> None:
    """The chart, at the images of this tree."""
    settings = [part for path, name in CHART_IMAGES.items() for part in ("--set", f"{path}={tour.images[name]}")]
    where = ("-n", "slipway-system", "--create-namespace", "--wait", "--timeout", "5m")
    tour.helm("upgrade", "--install", "slipway", str(ROOT / "charts/slipway"), *where, *settings)
    tour.say(tour.kubectl("-n", "slipway-system", "get", "pods"))


def train(tour: Tour) -> None:
    """Two versions of the model, on this machine."""
    tour.say(tour.run(sys.executable, str(HERE / "train.py"), str(OUT)))


def push(tour: Tour, version: str) -> None:
    """A model folder into the registry of the cluster."""
    tour.say(tour.slipway("push", str(OUT / version), f"{REPOSITORY}:{version}"))


def prepare(tour: Tour) -> None:
    """A namespace that enforces the Pod Security Standard `restricted`, without what an earlier run left."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    tour.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    tour.kubectl("-n", NAMESPACE, "delete", "mdep", NAME, "--ignore-not-found", "--wait", "--cascade=foreground", "--timeout=120s")


def convert_and_serve(tour: Tour) -> None:
    """One manifest; shows the steps of the conversion while they run."""
    converter = ("--converter-image", tour.images["SLIPWAY_RUNTIME_TORCH_IMAGE"])
    tour.say(tour.slipway("plan", "-f", str(HERE / "modeldeployment.yaml"), "-n", NAMESPACE, *converter))
    tour.kubectl("-n", NAMESPACE, "apply", "-f", str(HERE / "modeldeployment.yaml"))
    tour.wait_ready(NAMESPACE, NAME)
    tour.say(tour.kubectl("-n", NAMESPACE, "get", "mdep"))
    tour.say(tour.slipway("status", NAME, "-n", NAMESPACE))


def ask_one(tour: Tour) -> None:
    """The first prediction of the new deployment, as a user asks for it."""
    picture = sorted((OUT / "heldout").glob("*.png"))[-1]
    tour.say(tour.slipway("predict", NAME, "--image", str(picture), "-n", NAMESPACE))


def ask_all(tour: Tour) -> float:
    """Every held-out picture, through the Service; returns the share of right answers in percent."""
    pictures = sorted((OUT / "heldout").glob("*.png"))
    right = 0
    with tour.forward(NAMESPACE, NAME) as url, requests.Session() as session:
        session.trust_env = False
        for picture in pictures:
            answer = session.post(f"{url}/v2/models/{NAME}/predict", files={"image": picture.read_bytes()}, timeout=30)
            answer.raise_for_status()
            right += answer.json()["prediction"] == int(picture.name.partition("-")[0])
    percent = round(100 * right / len(pictures), 2)
    tour.say(f"{right} of {len(pictures)} held-out digits right: {percent} %")
    tour.require(percent >= MIN_ACCURACY_PERCENT, f"fewer than {MIN_ACCURACY_PERCENT} % of the held-out digits were right")
    return percent


def update_under_load(tour: Tour) -> dict[str, object]:
    """Version 2 takes over while 16 connections ask; returns the counts."""
    before = tour.stable(NAMESPACE, NAME)
    tour.start_load(
        NAMESPACE,
        sample().read_bytes(),
        f"http://{NAME}.{NAMESPACE}.svc/v2/models/{NAME}/predict",
        {"connections": CONNECTIONS, "seconds": LOAD_SECONDS, "settle": SETTLE_SECONDS, "limit": 420},
    )
    tour.sleep(UPDATE_AFTER)
    tour.say("applying version 2")
    tour.kubectl("-n", NAMESPACE, "apply", "-f", str(HERE / "modeldeployment-v2.yaml"))
    tour.wait_ready(NAMESPACE, NAME)
    after = tour.stable(NAMESPACE, NAME)
    tour.require(after != before, f"revision {before} is still stable")
    tour.say(f"{before} → {after}; the load goes on")
    counts = tour.end_load(NAMESPACE)
    tour.say(picture_of(counts, (before, after)))
    tour.say(tour.slipway("status", NAME, "-n", NAMESPACE))
    tour.require(counts["failed"] == 0, f"{counts['failed']} of {counts['requests']} requests failed: {counts['errors']}")
    tour.require(set(counts["revisions"]) == {before, after}, f"answers came from {counts['revisions']}, not from both revisions")
    return counts


def sample() -> Path:
    """One held-out picture."""
    return sorted((OUT / "heldout").glob("*.png"))[0]


def picture_of(counts: dict, revisions: tuple[str, str]) -> str:
    """Which revision answered in each second: `1` the old one, `2` the new one, `*` both, `!` a failed request."""
    old, new = revisions
    marks = []
    for second in range(int(counts["seconds"]) + 1):
        row: Counter[str] = Counter(counts["timeline"].get(str(second), {}))
        marks.append("!" if row["failed"] else "*" if row[old] and row[new] else "1" if row[old] else "2" if row[new] else ".")
    lines = [f"{start:>4} s  {''.join(marks[start : start + 60])}" for start in range(0, len(marks), 60)]
    numbers = {key: counts[key] for key in ("requests", "failed", "revisions", "connections_opened", "latency_ms", "seconds")}
    legend = f"who answered, second by second: 1 {old}, 2 {new}, * both, ! failed"
    return "\n".join([legend, *lines, json.dumps(numbers)])


def main() -> int:
    """Run the tour; returns the exit code."""
    tour = Tour.from_environment()
    accuracy, counts = 0.0, {"requests": 0, "failed": 0}
    try:
        for title, action in (
            ("install the chart", install),
            ("train two versions", train),
            ("clean up", prepare),
            ("push v1", lambda t: push(t, "v1")),
            ("push v2", lambda t: push(t, "v2")),
            ("convert and serve v1", convert_and_serve),
            ("first prediction", ask_one),
        ):
            tour.step(title, action)
        accuracy = tour.step("ask about every held-out digit", ask_all)
        counts = tour.step("roll out v2 under load", update_under_load)
    except (Failed, requests.RequestException, subprocess.TimeoutExpired) as failure:
        tour.failures.append(str(failure))
    for failure in tour.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    summary = {"accuracy_percent": accuracy, "requests": counts["requests"], "failed": counts["failed"], "seconds": tour.seconds}
    print(json.dumps(summary), flush=True)
    return 1 if tour.failures else 0


if __name__ == "__main__":
    sys.exit(main())
