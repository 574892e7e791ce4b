"""What the auction refuses, and archives of TorchServe, on the cluster."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from e2e.kit import Namespace, linear, mdep, model_folder, model_yaml, weights

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
FLOOR = 90
# Rows that differ by little beside what they share: eight bits cannot tell the classes apart.
ALIKE = (300 + np.random.default_rng(0).standard_normal((3, 4))).astype(np.float32)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_int8_that_misses_the_accuracy_floor_is_not_chosen(namespace: Namespace) -> None:
    rows = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    golden = npz(x=rows, labels=linear(rows, ALIKE).argmax(1))
    model = model_folder(
        "v1", manifest=model_yaml(validation={"data": "golden.npz"}), weights_safetensors=weights(ALIKE), golden_npz=golden
    )
    calibration = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "calibration"}}
    calibration["binaryData"] = {"calibration.npz": base64.b64encode(npz(x=rows)).decode()}
    conversion = {
        "candidates": [{"target": "ONNX", "precision": "Int8Static"}, {"target": "ONNX", "precision": "Float32"}],
        "calibration": {"uri": "configmap://calibration"},
        "objective": "Size",
        "validation": {"samples": 200, "maxAbsoluteError": "100000", "minTop1AgreementPercent": 0, "minAccuracyPercent": FLOOR},
    }
    namespace.apply(model, calibration, mdep("tiny", "configmap://v1", conversion=conversion))
    ready = namespace.wait_ready("tiny")
    (artifact,) = namespace.items("mart")
    low, full = artifact["status"]["candidates"]
    print(json.dumps([low, full]))
    assert (low["verdict"], low.get("chosen"), full["verdict"], full["chosen"]) == ("Failed", None, "Passed", True)
    assert float(low["accuracyPercent"]) < FLOOR <= float(full["accuracyPercent"])
    told = re.search(r"([\d.]+) % of the labelled samples are right, the limit is 90 %", low["message"])
    assert told, low["message"]
    assert float(told[1]) == pytest.approx(float(low["accuracyPercent"]), abs=0.1)
    assert ready["status"]["stable"]["format"] == "ONNX"
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        asked = rows[:5].tolist()
        np.testing.assert_allclose(namespace.infer(url, "tiny", asked), linear(rows[:5], ALIKE), rtol=1e-5)


def test_an_archive_of_torchserve_answers_as_its_handler_does(namespace: Namespace, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - seconds to import, in every process that collects the e2e tests

    from integration.mar import CLASS, SCALING, net, packed  # noqa: PLC0415

    mar = packed(tmp_path, "handler.py", {"handler.py": CLASS, "scaling.py": SCALING})
    folder = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "archive"}}
    folder["binaryData"] = {"m.mar": base64.b64encode(mar.read_bytes()).decode()}
    namespace.apply(folder, mdep("scorer", "configmap://archive", format="TorchServe", serving={"resources": {}}))
    assert namespace.wait_ready("scorer")["status"]["stable"]["format"] == "TorchServe"
    asked = [1.0, -2.0, 3.0, 0.5]
    best = torch.softmax(net()(0.5 * torch.tensor([asked])), 1).max(1)
    with namespace.cluster.forward(namespace.name, "service/scorer", 80) as url:
        request = urllib.request.Request(f"{url}/predictions/scorer", json.dumps(asked).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            got = json.loads(answer.read())
    assert got["score"] == pytest.approx(float(best.values[0]), rel=1e-5)
    assert got["label"] in ("cat", "dog", "fish", ["n01", "cat"], ["n02", "dog"])
