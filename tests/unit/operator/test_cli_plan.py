"""`slipway plan`, `slipway predict` and usage errors, without a cluster."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
import yaml
from click.testing import CliRunner

from slipway.cli.main import main
from slipway.cli.predict import lines, request_body

HEAD = "apiVersion: slipway.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: digits}\n"
GOOD = HEAD + "spec: {model: {uri: 'oci://r.n:5000/models/digits:v1'}, serving: {replicas: 2}}\n"


def plan(text: str, *arguments: str):
    return CliRunner().invoke(main, ["plan", "-f", "-", *arguments], input=text)


def test_the_sequence_of_objects():
    done = plan(GOOD, "-n", "ml")
    assert done.exit_code == 0, done.output
    rows = [line.split()[:4] for line in done.stdout.splitlines()]
    kinds = [word.partition("/")[0] for row in rows for word in row if "/" in word and word[0].isupper()]
    assert kinds == ["ModelArtifact", "Job", "Deployment", "Service", "Service"]
    assert "ModelDeployment ml/digits" in done.stdout
    assert "end: Ready=True Ready" in done.stdout


def test_a_gateway_adds_a_route_and_a_pause_stops_nothing_that_is_first():
    routing = "routing: {gateway: {name: public}}, rollout: {steps: [{weight: 10}]}, paused: true"
    done = plan(GOOD.replace("serving: {replicas: 2}", routing))
    assert done.exit_code == 0, done.output
    assert done.stdout.count("HTTPRoute/digits") == 1
    assert "end: Ready=True Ready" in done.stdout


def test_names_do_not_depend_on_what_the_api_server_would_fill_in():
    explicit = GOOD.replace("replicas: 2", "replicas: 7").replace("spec: {", "spec: {revisionHistoryLimit: 5, ")
    assert plan(GOOD).stdout.splitlines()[-2] == plan(explicit).stdout.splitlines()[-2]


def test_yaml_prints_the_objects():
    done = plan(GOOD, "-o", "yaml")
    documents = list(yaml.safe_load_all(done.stdout))
    assert [d["kind"] for d in documents] == ["ModelArtifact", "Job", "Deployment", "Service", "Service"]
    assert "&id" not in done.stdout
    assert documents[2]["spec"]["replicas"] == 2


ERRORS = [
    ("{model: {uri: 'ftp://x'}}", "spec.model.uri: the URI must start with oci://"),
    ("{model: {uri: 'configmap://x'}, nope: 1}", "spec.nope: there is no such field"),
    ("{}", "spec.model: Field required"),
    (
        "{model: {uri: 'configmap://x'}, conversion: {candidates: [{target: ONNX}, {target: Foo}]}}",
        "spec.conversion.candidates[1].target: Input should be",
    ),
]


@pytest.mark.parametrize(("spec", "words"), ERRORS)
def test_each_error_has_its_path(spec, words):
    done = plan(f"{HEAD}spec: {spec}\n")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0].startswith(f"error: <stdin>: {words}")
    assert len(done.stderr.splitlines()) == 1


def test_other_documents():
    assert "has no ModelDeployment" in plan("apiVersion: v1\nkind: Namespace\n").stderr
    assert "has no kind" in plan("a: 1\n").stderr
    assert "not YAML" in plan("a: [").stderr
    runtime = (
        "---\napiVersion: slipway.dev/v1alpha1\nkind: ServingRuntime\nmetadata: {name: t}\nspec: {image: t, formats: [{name: PyTorch}]}\n"
    )
    assert "ServingRuntimeMissing" in plan(GOOD + runtime).stdout


def test_usage_errors_have_exit_code_2():
    for arguments in (["status"], ["predict", "x"], ["plan"], ["nope"], ["push"]):
        assert CliRunner().invoke(main, arguments).exit_code == 2, arguments


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho 'noise' >&2\necho 'error: context \"x\" does not exist' >&2\nexit 1\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = CliRunner().invoke(main, ["--context", "x", "status", "digits"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert 'context "x" does not exist. Next: ' in done.stderr


def test_bodies(tmp_path):
    document = tmp_path / "d"
    for text, sent in (('{"x": [1]}', {"inputs": {"x": [1]}}), ("[[1]]", {"inputs": [[1]]}), ('{"instances": [1]}', {"instances": [1]})):
        document.write_text(text)
        body, kind = request_body(document, None, None)
        assert (json.loads(body), kind) == (sent, "application/json")
    document.write_bytes(b"\x89PNG")
    assert request_body(document, None, None) == (b"\x89PNG", "image/*")


def test_answers_in_words():
    one = {"prediction": 7, "label": "seven", "probability": 0.998, "revision": "digits-1"}
    assert list(lines(one)) == ["seven (class 7)  99.8 %  revision digits-1"]
    assert list(lines({"predictions": [{"prediction": 1, "probability": 0.5}], "revision": "r"})) == ["class 1  50.0 %  revision r"]
    assert list(lines({"outputs": {"y": [1]}, "revision": "r"})) == ['{"y": [1]}  revision r']


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        is_image = self.headers["content-type"].startswith("image/")
        answer = {"prediction": 7, "probability": 1.0, "revision": "r"} if is_image else {"error": "wrong shape"}
        data = json.dumps(answer).encode()
        self.send_response(200 if is_image else 400)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        return


def test_predict_by_url(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        (tmp_path / "i.png").write_bytes(b"\x89PNG")
        (tmp_path / "d.json").write_text("{}")
        url = ["--url", f"http://127.0.0.1:{server.server_port}/"]
        good = CliRunner().invoke(main, ["predict", "digits", "--image", str(tmp_path / "i.png"), *url])
        assert (good.exit_code, good.stdout) == (0, "class 7  100.0 %  revision r\n")
        bad = CliRunner().invoke(main, ["predict", "digits", "--json", str(tmp_path / "d.json"), *url])
        assert bad.exit_code == 1
        assert "HTTP 400: wrong shape. Next: " in bad.stderr
    finally:
        server.shutdown()
        server.server_close()
