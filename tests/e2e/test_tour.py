"""What a user does in the first minutes: one manifest, a ready model, right answers, a shared artifact, a clean exit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from e2e.kit import Namespace, fetch_json, linear, mdep, model_folder, slipway_cli, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]]


@pytest.fixture(scope="module")
def tour(shared: Namespace) -> Namespace:
    """A namespace with the model `tiny`, ready."""
    shared.apply(model_folder("tiny-folder"), mdep("tiny", "configmap://tiny-folder", serving={"labels": ["a", "b", "c"]}))
    shared.wait_ready("tiny")
    return shared


def test_a_model_becomes_ready_and_status_tells_all_about_it(tour: Namespace) -> None:
    status = tour.get("mdep", "tiny")["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Ready": "True",
        "ArtifactReady": "True",
        "Available": "True",
        "Progressing": "False",
        "Degraded": "False",
    }
    assert (status["stable"]["format"], status["stable"]["weight"], status["stable"]["readyReplicas"]) == ("ONNX", 100, 1)
    assert status["stable"]["digest"].startswith("sha256:")
    artifact = tour.get("mart", status["stable"]["artifact"])["status"]
    assert [row["verdict"] for row in artifact["candidates"]] == ["Passed"]


def test_the_server_answers_like_torch(tour: Namespace) -> None:
    with tour.cluster.forward(tour.name, "service/tiny", 80) as url:
        metadata = fetch_json(f"{url}/v2/models/tiny")
        assert [(t["name"], t["datatype"]) for t in metadata["inputs"]] == [("x", "FP32")]
        answers = tour.infer(url, "tiny", ROWS)
    np.testing.assert_allclose(answers, linear(ROWS), atol=1e-5)
    np.testing.assert_allclose(tour.infer_by_grpc("tiny", ROWS), linear(ROWS), atol=1e-5)


def test_predict_of_the_cli_answers_with_class_names(tour: Namespace, tmp_path) -> None:
    question = tmp_path / "input.json"
    question.write_text(json.dumps({"x": ROWS[0]}))
    done = slipway_cli(tour.cluster, "predict", "tiny", "-n", tour.name, str(question))
    assert done.returncode == 0, done.stderr
    assert "c" in done.stdout


def test_status_of_the_cli_shows_the_tree(tour: Namespace) -> None:
    done = slipway_cli(tour.cluster, "status", "tiny", "-n", tour.name)
    assert done.returncode == 0, done.stderr
    status = tour.get("mdep", "tiny")["status"]
    assert status["stable"]["revision"] in done.stdout
    assert status["stable"]["artifact"] in done.stdout


def test_kubectl_get_fits_80_columns(tour: Namespace) -> None:
    lines = tour.kubectl("get", "mdep").splitlines()
    assert lines[0].split() == ["NAME", "READY", "STABLE", "CANARY", "WEIGHT", "FORMAT", "AGE"]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_a_second_deployment_of_the_same_model_shares_the_artifact(tour: Namespace) -> None:
    jobs = tour.jobs()
    tour.apply(mdep("twin", "configmap://tiny-folder"))
    status = tour.wait_ready("twin")["status"]
    assert status["stable"]["artifact"] == tour.get("mdep", "tiny")["status"]["stable"]["artifact"]
    assert tour.jobs() == jobs


def test_delete_leaves_nothing_within_60_seconds(tour: Namespace) -> None:
    tour.kubectl("delete", "mdep", "--all", "--wait=false")
    until(lambda: not tour.owned(), 60, lambda: f"left: {tour.owned()}")
