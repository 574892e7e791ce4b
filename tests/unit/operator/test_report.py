"""What `slipway report` says: why each candidate is served or not, on a terminal, as JSON, and as a page."""

from __future__ import annotations

import copy
import io
import json
import re
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from slipway import names
from slipway.api.modelartifact import ModelArtifactStatus
from slipway.cli.errors import CliError
from slipway.cli.kubectl import Cluster
from slipway.cli.main import main
from slipway.cli.report import PRICES
from slipway.cli.report.charts import HEIGHT, WIDTH, bars, scatter, ticks
from slipway.cli.report.model import METRICS, P50, SIZE, Report, bytes_shown, cost_lines, document, hours, money, report_of
from slipway.cli.report.page import page
from slipway.cli.report.text import rendered
from slipway.cli.tree import View
from slipway.plan.cost import NO_TRAFFIC, Cost
from slipway_runtime.serve.metrics import Metrics
from unit.operator.world import World, model_deployment

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
FAST: dict[str, Any] = {
    **{"target": "ONNX", "precision": "Float32", "verdict": "Passed", "reason": "Validated", "maxAbsoluteError": "9.5e-06"},
    **{"maxRelativeError": "7e-07", "top1AgreementPercent": "100", "accuracyPercent": "98.9", "latencyP50": "0.02ms"},
    **{"latencyP99": "0.04ms", "throughput": "57321", "batchSize": 32, "loadSeconds": "0.043", "peakMemory": "84Mi", "sizeBytes": 26064},
}
SLOW = {**FAST, "target": "TorchScript", "method": "Script", "maxAbsoluteError": "0", "latencyP50": "0.12ms", "throughput": "2480"}
SMALL = {
    **FAST,
    "precision": "Int8Dynamic",
    "latencyP50": "0.0201ms",
    "throughput": "57400",
    "sizeBytes": 18260,
    "maxAbsoluteError": "0.11",
}
WRONG = {
    "target": "ONNX",
    "precision": "Int8Static",
    "verdict": "Failed",
    "reason": "ParityFailed",
    "message": "off by 3",
    "sizeBytes": 16748,
}
WRONG |= {"maxAbsoluteError": "3"}
ABSENT = {"target": "TorchTensorRT", "precision": "Float16", "verdict": "Unavailable", "reason": "TargetUnavailable", "message": "no GPU"}
ROWS = [{**FAST, "chosen": True}, SLOW, SMALL, WRONG, ABSENT]
COST = Cost(2, 2, "USD", Decimal("0.024"), 6.4, 1_234_567.0, Decimal("0.124"))


TIED = "passed; no better than ONNX Float32 by more than the noise, and less simple"


def report_with(rows: list[dict[str, Any]], cost: Cost = COST, **status: Any) -> Report:
    status = {"digest": "sha256:1", "format": "ONNX", "precision": "Float32", "candidates": rows, **status}
    objective = status.pop("objective", "Latency")
    ModelArtifactStatus.model_validate(status)
    resource = model_deployment()
    resource["status"] = {"stable": {"revision": "digits-1", "artifact": "mart-1", "weight": 100}}
    artifact = {"metadata": {"name": "mart-1"}, "spec": {"conversion": {"objective": objective}}, "status": status}
    return report_of(View(resource, {"mart-1": artifact}), {"digits-1": cost})


@pytest.mark.parametrize(
    ("objective", "row", "why"),
    [
        ("Latency", SLOW, "passed; p50 0.12 ms against 0.02 ms of ONNX Float32"),
        ("Throughput", SLOW, "passed; throughput 2,480/s against 57,321/s of ONNX Float32"),
        ("Throughput", SMALL, TIED),
        ("Size", {**SLOW, "sizeBytes": 33803}, "passed; size 33.8 kB against 26.1 kB of ONNX Float32"),
        ("Latency", {**FAST, "precision": "Float16", "latencyP50": "0.0195ms"}, TIED),
        ("Latency", {**SLOW, "latencyP50": None, "message": "not measured: too slow"}, "not measured: too slow"),
        ("Latency", {**SLOW, "latencyP50": None}, "passed; p50 was not measured"),
        (None, SLOW, "passed; without conversion.objective the first that passes is served: ONNX Float32"),
        ("Latency", WRONG, "ParityFailed: off by 3"),
        ("Latency", ABSENT, "TargetUnavailable: no GPU"),
    ],
)  # fmt: skip
def test_why_a_candidate_is_not_served(objective: str | None, row: dict[str, Any], why: str) -> None:
    row = {key: value for key, value in row.items() if value is not None}
    (revision,) = report_with([{**FAST, "chosen": True}, row], objective=objective, choice="ONNX is the best").revisions
    assert [c.why for c in revision.candidates] == ["ONNX is the best", why]
    assert [c.is_chosen for c in revision.candidates] == [True, False]


@pytest.mark.parametrize(
    ("status", "rows", "chosen"),
    [
        ({}, [WRONG, FAST], 1),
        ({"precision": "Int8Dynamic"}, [FAST, SMALL], 1),
        ({}, [{**FAST, "target": "None"}, SLOW], 0),
        ({"format": "TorchScript"}, [FAST, SLOW], 1),
        ({"digest": ""}, [FAST, SMALL], None),
        ({"format": "PyTorch"}, [FAST], None),
        ({"precision": "Float16"}, [{**SMALL, "chosen": True}, {**FAST, "precision": "Float16"}], 0),
    ],
)
def test_the_chosen_row_of_an_artifact_that_does_not_mark_it(
    status: dict[str, Any], rows: list[dict[str, Any]], chosen: int | None
) -> None:
    (revision,) = report_with(rows, **status).revisions
    assert [c.is_chosen for c in revision.candidates] == [number == chosen for number in range(len(rows))]


def test_numbers_that_are_none_are_left_out() -> None:
    (revision,) = report_with([{**FAST, "latencyP50": "fast", "maxAbsoluteError": "nan?"}]).revisions
    assert {P50.key, "maxAbsoluteError"} & revision.candidates[0].values.keys() == set()
    assert revision.candidates[0].values["peakMemoryBytes"] == 84 * 2**20
    assert revision.candidates[0].text(P50) == ""


# --- terminal -----------------------------------------------------------------------------------------------------


def printed(report: Report, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False)
    for part in rendered(report, console):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_pipe_gets_one_table_with_every_number() -> None:
    lines = printed(report_with(ROWS), 400).splitlines()
    assert lines[2] == "stable digits-1  100 % of the traffic  mart-1  ONNX Float32"
    assert lines[3].split()[:2] == ["candidate", "verdict"]
    assert re.split(r"\s{2,}", lines[4]) == [
        *("* ONNX Float32", "Passed", "9.5e-06", "7e-07", "100 %", "98.9 %", "0.02 ms", "0.04 ms"),
        *("57,321/s", "32", "0.043 s", "84 MiB", "26.1 kB"),
    ]
    assert lines[7].split()[-1] == "kB"
    assert set(lines[8].split()[3:]) == {"-"}, "not available, so nothing was measured"
    assert "- ONNX Int8Static: ParityFailed: off by 3" in lines
    assert lines[-2:] == [
        "cost: 0.124 USD per million predictions",
        "      2 pods at 0.024 USD an hour together; 1,234,567 predictions in 6.4 pod hours",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
def test_no_table_is_cut_on_a_narrow_terminal(width: int) -> None:
    text = printed(report_with(ROWS), width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    words = Counter(text.split())
    assert (words["57,321/s"], words["26.1"], words["18.3"]) == (1, 2, 1), "every number is there, once"


def test_without_candidates_the_state_of_the_artifact_is_told() -> None:
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "Converting",
        "message": "step 2 of 4. Next: wait",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    text = printed(report_with([], Cost(0, notes=("no pods",)), digest=None, format=None, precision=None, conditions=[ready]), 80)
    assert "no candidates: Converting: step 2 of 4." in text
    assert "cost: no pods" in text
    assert "no revision yet; see: slipway status digits" in printed(report_of(View(model_deployment()), {}), 80)


@pytest.mark.parametrize(
    ("cost", "lines"),
    [
        (
            Cost(1, 1, "EUR", Decimal(3), 0.01, 0.0, None, (NO_TRAFFIC,)),
            ["1 pod at 3.00 EUR an hour; 0 predictions in 36 pod seconds", NO_TRAFFIC],
        ),
        (
            Cost(2, 1, "", Decimal("0.5"), 1.0, 5.0, Decimal("1e5"), ("gone",)),
            ["100,000.00 per million predictions", "1 of 2 pods at 0.5 an hour; 5 predictions in 60 pod minutes", "gone"],
        ),
        (Cost(2, notes=("no price for node a",)), ["no price for node a"]),
    ],
)  # fmt: skip
def test_cost_in_words(cost: Cost, lines: list[str]) -> None:
    assert cost_lines(cost) == lines


def test_amounts_for_people() -> None:
    assert [money(Decimal(text), "USD") for text in ("0", "0.00012345", "0.124", "1.005", "1234.5")] == [
        *("0.00 USD", "0.000123 USD", "0.124 USD", "1.00 USD", "1,234.50 USD")
    ]
    assert [bytes_shown(value) for value in (12, 26064, 1.725e6, 4.2e9, 4.2e12)] == ["12 B", "26.1 kB", "1.73 MB", "4.2 GB", "4,200 GB"]
    assert [hours(value) for value in (0.01, 1.5, 1000)] == ["36 pod seconds", "90 pod minutes", "1,000.0 pod hours"]


def test_a_conversion_none_of_whose_candidates_passed_shows_them_and_the_reason() -> None:
    world = World(model_deployment())
    world.settle()
    world.fail_jobs("validate", 40, "ParityFailed", "logits differ by 3", candidates=[WRONG])
    world.settle()
    report = report_of(View(world.kind("ModelDeployment")["digits"], world.kind("ModelArtifact")), {})
    lines = printed(report, 200).splitlines()
    assert lines[4].split()[:5] == ["ONNX", "Int8Static", "Failed", "3", "-"]
    assert lines[-3:] == ["- ONNX Int8Static: ParityFailed: off by 3", "none is served: ParityFailed: logits differ by 3", "cost: no pods"]
    said = Reader(page(report, NOW)).said("p")
    assert "None is served: ParityFailed: logits differ by 3" in said


# --- JSON ---------------------------------------------------------------------------------------------------------


def test_json_has_numbers_with_units_in_their_names() -> None:
    found = json.loads(json.dumps(document(report_with(ROWS, choice="because"))))
    (revision,) = found["revisions"]
    first, absent = revision["candidates"][0], revision["candidates"][-1]
    assert (first["chosen"], first["why"], first["latencyP50Milliseconds"], first["peakMemoryBytes"]) == (True, "because", 0.02, 84 * 2**20)
    assert first.keys() == absent.keys()
    assert all(absent[metric.key] is None for metric in METRICS)
    assert revision["cost"]["perMillionPredictions"] == "0.124"
    small, large = Cost(1, 1, per_hour=Decimal("0.0000123456789"), per_million=Decimal(1234567)), Cost(1, 1, per_hour=Decimal("0.02400"))
    found = [document(report_with(ROWS, cost))["revisions"][0]["cost"] for cost in (small, large)]
    assert [(cost["perHour"], cost["perMillionPredictions"]) for cost in found] == [("0.0000123457", "1234570"), ("0.024", None)]
    assert (revision["objective"], revision["cost"]["predictions"]) == ("Latency", 1234567)


# --- page ---------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Elements and text of a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


HOSTILE = '</style><script>alert(1)</script><img src=x onerror="alert(1)">'


def test_the_page_needs_nothing_and_runs_nothing() -> None:
    rows = [{**row, "message": HOSTILE, "target": HOSTILE} for row in ROWS]
    text = page(report_with(rows, choice=HOSTILE), NOW)
    reader = Reader(text)
    assert text.startswith("<!doctype html>\n")
    assert {tag for tag, _ in reader.elements} & {"script", "img", "link", "iframe", "object", "a"} == set()
    loading = {"src", "href", "srcset", "data", "xlink:href", "style", "action"}
    assert not [a for _, attributes in reader.elements for a in attributes if a in loading or a.startswith("on")]
    assert not re.search(r"url\(|@import", text)
    assert any(HOSTILE in said for said in reader.said("li"))
    assert len(reader.said("style")) == 1


def test_the_page_is_readable_without_eyes_and_without_colours() -> None:
    reader = Reader(page(report_with(ROWS), NOW))
    ids = Counter(a["id"] for _, a in reader.elements if "id" in a)
    assert set(ids.values()) == {1}
    wanted = {ident for _, a in reader.elements for ident in a.get("aria-labelledby", "").split()}
    assert wanted <= ids.keys()
    pictures = [a for a in reader.all("svg") if "aria-hidden" not in a]
    assert len(pictures) == 8 == len(reader.all("figure"))
    assert all(a["role"] == "img" and len(a["aria-labelledby"].split()) == 2 for a in pictures)
    assert any("1 ONNX Float32 (chosen): p50 0.02 ms, max error 9.5e-06" in said for said in reader.said("desc"))
    assert "4 ONNX Int8Static (failed)" in reader.said("text")
    assert {"Passed", "Failed", "Unavailable"} <= set(reader.said("td"))
    assert reader.all("html") == [{"lang": "en"}]
    assert {a["scope"] for a in reader.all("th")} == {"col", "row"}
    assert [a["tabindex"] for a in reader.all("div") if "tabindex" in a] == ["0"], "what scrolls can be reached by keyboard"


def test_the_page_shows_the_cost_or_why_there_is_none() -> None:
    assert "0.124 USD" in Reader(page(report_with(ROWS), NOW)).said("p")
    assert "no price for node a" in Reader(page(report_with(ROWS, Cost(1, notes=("no price for node a",))), NOW)).said("p")


def test_a_page_about_nothing_yet() -> None:
    assert any("No revision yet" in said for said in Reader(page(report_of(View(model_deployment()), {}), NOW)).said("p"))
    reader = Reader(page(report_with([], digest=None), NOW))
    assert reader.all("svg") == []
    assert any(said.startswith("No candidates: Pending") for said in reader.said("p"))


@pytest.mark.parametrize(
    ("low", "high", "most", "want"),
    [
        (0.01, 0.9, 6, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        (0.01, 0.9, 4, [0.01, 0.1]),
        (1.5, 9, 6, [2, 5]),
        (1.5, 90, 3, [2, 10, 50]),
        (1e-7, 1, 4, [1e-7, 1e-5, 1e-3, 1e-1]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, most: int, want: list[float]) -> None:
    assert ticks(low, high, most) == pytest.approx(want)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_marks_and_numbers_are_inside_and_apart(count: int) -> None:
    rows = [{**FAST, "latencyP50": f"{0.02 + number / 1000}ms", "maxAbsoluteError": str(number % 2 * 1e-5)} for number in range(count)]
    (revision,) = report_with(rows).revisions
    figure = scatter("x", "t", list(enumerate(revision.candidates, 1)), P50)
    assert figure is not None
    numbers = [(float(t.get("x", "")), float(t.get("y", ""))) for t in figure.iter("text") if "number" in t.get("class", "")]
    assert len(numbers) == count
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in numbers)
    assert len({(round(x), round(y)) for x, y in numbers}) == count, "none hides another"


def test_a_plot_without_numbers_is_left_out() -> None:
    (revision,) = report_with([ABSENT]).revisions
    rows = list(enumerate(revision.candidates, 1))
    assert scatter("x", "t", rows, P50) is None
    assert bars("x", "t", rows, SIZE) is None


def test_the_longest_bar_fills_the_width_and_the_others_their_share() -> None:
    (revision,) = report_with([{**FAST, "sizeBytes": size} for size in (1000, 250)] + [ABSENT]).revisions
    figure = bars("x", "t", list(enumerate(revision.candidates, 1)), SIZE)
    assert figure is not None
    assert [float(bar.get("width", "")) for bar in figure.iter("rect")] == [WIDTH - 2, pytest.approx((WIDTH - 2) / 4, abs=0.1)]


# --- the command --------------------------------------------------------------------------------------------------

NODE = {"kind": "Node", "metadata": {"name": "n1", "labels": {"pool": "cpu"}}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}}


class Fake:
    """A cluster in memory, as kubectl would show it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = World(model_deployment(conversion={"objective": "Latency"}))
        self.world.settle()
        self.world.finish_jobs()
        self.world.settle()
        self.world.run_pods()
        self.world.settle()
        resource = self.world.kind("ModelDeployment")["digits"]
        self.revision = resource["status"]["stable"]["revision"]
        self.world.kind("ModelArtifact")[resource["status"]["stable"]["artifact"]]["status"]["candidates"] = ROWS
        metrics = Metrics("digits", self.revision, lambda: 0)
        metrics.count(200)
        metrics.batch(1000)
        metrics.seconds(0.01)
        self.raw: Any = metrics.render().decode()
        prices = {"currency": "USD", "nodePrices": [{"nodeSelector": {"pool": "cpu"}, "pricePerHour": "1"}]}
        self.objects: dict[str, Any] = {"configmap": {"data": {"prices.json": json.dumps(prices)}}, "nodes": NODE}
        self.asked: list[str] = []
        labels = {names.REVISION: self.revision, names.DEPLOYMENT: "digits", names.COMPONENT: names.SERVER}
        server = {"name": "server", "resources": {"requests": {"cpu": "1"}}, "ports": [{"name": "http", "containerPort": 8080}]}
        self.pod: dict[str, Any] = {
            "kind": "Pod",
            "metadata": {"name": "digits-1-x", "namespace": "default", "uid": "1", "labels": labels},
            "spec": {"nodeName": "n1", "containers": [server]},
            "status": {"podIP": "10.0.0.1", "containerStatuses": [{"name": "server", "started": True, "ready": True}]},
        }
        for name, function in (("find", self._find), ("items", self._items), ("raw", self._raw)):
            monkeypatch.setattr(Cluster, name, lambda _cluster, *arguments, function=function: function(*arguments))

    def _find(self, kind: str, *arguments: str) -> Any:
        found = self.objects.get(kind)
        if isinstance(found, Exception):
            raise found
        of = {"modeldeployments.slipway.dev": "ModelDeployment", "modelartifacts.slipway.dev": "ModelArtifact"}
        return copy.deepcopy(self.world.kind(of[kind]).get(arguments[0])) if kind in of else found

    def _items(self, kind: str, *arguments: str) -> Any:
        if kind.startswith("servingruntimes"):
            return list(self.world.runtimes)
        return [self.pod] if names.DEPLOYMENT in " ".join(arguments) else []

    def _raw(self, path: str) -> str:
        self.asked.append(path)
        if isinstance(self.raw, Exception):
            raise self.raw
        return str(self.raw)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["report", "digits", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_table_and_the_cost_of_a_cluster(fake: Fake) -> None:
    text = run()
    assert "* ONNX Float32 " in text
    assert "USD per million predictions" in text
    assert "1 pod at 0.25 USD an hour; 1,000 predictions" in text
    assert fake.asked == ["/api/v1/namespaces/default/pods/digits-1-x:8080/proxy/metrics"]


def test_the_same_as_json(fake: Fake) -> None:
    (revision,) = json.loads(run("-o", "json"))["revisions"]
    assert (revision["revision"], revision["cost"]["predictions"], revision["cost"]["perHour"]) == (fake.revision, 1000, "0.25")


def test_the_same_as_a_page(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert run("--html", str(file)) == f"wrote {file}: open it in a browser\n"
    assert fake.revision in file.read_text()
    done = CliRunner().invoke(main, ["report", "digits", "--html", str(tmp_path / "none" / "report.html")])
    assert (done.exit_code, "cannot be written: No such file" in done.output) == (1, True)


FORBIDDEN = CliError('kubectl get x: x is forbidden: User "a" cannot get it', "ask for read access")


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("configmap", None, "no node prices: set cost.nodePrices"),
        ("configmap", FORBIDDEN, 'the node prices cannot be read: kubectl get x: x is forbidden: User "a" cannot get it\n'),
        ("configmap", {"data": {"prices.json": "{"}}, f"ConfigMap slipway-system/{PRICES}: "),
        ("configmap", {}, f"ConfigMap slipway-system/{PRICES}: "),
        ("nodes", FORBIDDEN, "no right to read node n1, or it is gone"),
        ("nodes", None, "no right to read node n1, or it is gone"),
        ("nodes", {"kind": "List", "items": []}, "no right to read node n1, or it is gone"),
        ("nodes", {**NODE, "metadata": {"name": "n1", "labels": {}}}, "no price for node n1"),
        ("raw", FORBIDDEN, "pod digits-1-x: kubectl get x: x is forbidden"),
        ("raw", "<html>", "pod digits-1-x: there is no metric slipway_requests_total"),
        ("raw", "# TYPE slipway_requests_total counter\nprocess_start_time_seconds 1\n", "no traffic yet"),
        ("status", {}, "pod digits-1-x: its server has not started yet"),
    ],
)
def test_what_is_missing_for_the_cost_is_said_plainly(fake: Fake, kind: str, value: Any, words: str) -> None:
    if kind == "raw":
        fake.raw = value
    elif kind == "status":
        fake.pod["status"] = value
    else:
        fake.objects[kind] = value
    text = run()
    assert words in text
    assert "per million" not in text
    assert "* ONNX Float32 " in text, "the table is there all the same"


def test_a_pod_that_ends_is_not_counted(fake: Fake) -> None:
    fake.pod["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
    assert "an hour" not in run()


def test_an_unknown_name_is_an_error(fake: Fake) -> None:
    done = CliRunner().invoke(main, ["report", "other"])
    assert (done.exit_code, "there is no ModelDeployment other" in done.output) == (1, True)
