"""Every hostile file through fetch and convert: no code runs, nothing outside the folder is read, memory is bounded, the reason is right.

That a case ends at all is the bound on its time: convert's own limit, and the limit of the test.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from integration.pipeline.hostile.corpus import CASES, MARKER, World

STEPS = ("fetch", "convert")
MEMORY = 1 << 30  # what a task of convert may use; the processes that are forked bring about half of it along
NONE = {"candidates": [{"target": "None"}]}
YAML = """
format: ONNX
signature:
  inputs: [{name: x, dtype: float32, shape: [batch, 8]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 4]}]
"""


def onnx_folder(folder: Path) -> Path:
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415

    shutil.rmtree(folder)
    folder.mkdir()
    weights = onnx.numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    sides = [onnx.helper.make_tensor_value_info(name, 1, ["batch", size]) for name, size in (("x", 8), ("y", 4))]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.yaml").write_text(YAML)
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile(case, pipeline, model_folder, web, tmp_path):
    address, web_folder = web
    folder = onnx_folder(model_folder) if case.onnx else model_folder
    world = World(folder, web_folder, tmp_path / "canary" / "file", tmp_path / "secret")
    world.canary.parent.mkdir()
    world.secret.write_text(MARKER)
    case.make(world)
    steps, uri = STEPS, "pvc://models/m"
    if case.how == "claim":
        shutil.copytree(folder, pipeline.work / "origin" / "m", symlinks=True, copy_function=copied)
    elif case.how == "placed":
        steps = ("convert",)
        (pipeline.work / "source").mkdir(parents=True)
        folder.rename(pipeline.work / "source" / "model")
    else:
        uri = f"{address}/{case.how}"
    got = pipeline.run(
        {"model": {"uri": uri}, "conversion": NONE}, steps, SLIPWAY_MEMORY_LIMIT_BYTES=str(MEMORY), SLIPWAY_TIMEOUT_SECONDS="60"
    )
    assert got.reason in case.reasons, f"{got.reason}: {got.text}\n{got.log}"
    assert got.code == 0 if got.reason == "Converted" else got.text, "a failure says why"
    assert not world.canary.exists()
    assert MARKER not in got.log
    assert MARKER not in got.text
    assert not [path for path in written(pipeline.work) if MARKER.encode() in path.read_bytes()]
    assert max(outcome.peak for outcome in pipeline.outcomes) < 2 * MEMORY


def copied(source: str, target: str) -> str:
    """Copy what copytree does not: a pipe."""
    if Path(source).is_fifo():
        import os  # noqa: PLC0415

        os.mkfifo(target)
        return target
    return shutil.copy2(source, target)


def written(work: Path) -> list[Path]:
    """What the steps themselves wrote, and not the volume that the case was made on."""
    rows = [path for name in ("source", "candidates", "report") for path in (work / name).rglob("*")]
    return [path for path in rows if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1]


@pytest.mark.parametrize("case", [case for case in CASES if case.threat in ("T07", "T08")][:6], ids=lambda case: case.name)
def test_a_pinned_digest_refuses_any_change(case, pipeline, model_folder, web, tmp_path):
    """A flipped bit in the weights may still be a model; what was pinned is not it."""
    origin = pipeline.work / "origin" / "m"
    shutil.copytree(model_folder, origin)
    pin = pipeline.run({"model": {"uri": "pvc://models/m"}, "conversion": NONE}, ("fetch",)).message["sourceDigest"]
    case.make(World(origin, web[1], tmp_path / "canary", tmp_path / "secret"))
    assert pipeline.run({"model": {"uri": "pvc://models/m", "digest": pin}, "conversion": NONE}, ("fetch",)).reason == "DigestMismatch"
