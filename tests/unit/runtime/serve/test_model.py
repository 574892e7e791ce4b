"""Loading: only a model that is whole and reproduces its golden outputs becomes ready."""

from __future__ import annotations

import numpy as np
import pytest

from slipway_runtime.artifact import Signature, TensorSpec, open_artifact, takes_batches
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.cgroup import cpu_limit, memory_limit
from slipway_runtime.serve.main import bytes_held
from slipway_runtime.serve.model import LoadOptions, batch_sizes, golden_difference, load_model
from unit.runtime.serve.artifacts import digits_draft, mlp_draft, sleeper_draft, write


def load(folder, draft, labels=None):
    return load_model(open_artifact(folder, write(folder, draft)), LoadOptions(labels=labels))


def reason_of(folder, draft, labels=None):
    with pytest.raises(Failure) as caught:
        load(folder, draft, labels)
    return caught.value.reason


def test_onnx_reproduces_its_golden_outputs(tmp_path):
    model = load(tmp_path, mlp_draft())
    assert model.backend.infer({"x": np.zeros((3, 64), np.float32)})["y"].shape == (3, 10)
    assert model.load_seconds > 0


def test_labels_of_the_resource_replace_those_of_the_artifact(tmp_path):
    assert load(tmp_path, digits_draft()).labels[1] == "d1"
    assert load(tmp_path, digits_draft(), [f"e{i}" for i in range(10)]).labels[1] == "e1"


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (mlp_draft(golden_error=0.01), "GoldenMismatch"),
        (mlp_draft(golden_error=float("nan")), "GoldenMismatch"),
        (mlp_draft(format="Joblib"), "ModelLoadFailed"),
        (mlp_draft(format="TorchScript"), "ModelLoadFailed"),
        (mlp_draft(labels=["one"]), "InvalidArguments"),
    ],
)
def test_a_model_that_is_not_proven_is_refused(tmp_path, draft, reason):
    assert reason_of(tmp_path, draft) == reason


def test_a_signature_that_is_not_the_file_s_is_refused(tmp_path):
    draft = mlp_draft()
    draft.config["signature"] = {**draft.config["signature"], "inputs": [{"name": "q", "dtype": "float32", "shape": ["batch", 64]}]}
    assert reason_of(tmp_path, draft) == "SignatureMismatch"


@pytest.mark.parametrize("damage", ["model.onnx", "slipway.json", "golden/outputs.npz"])
def test_a_corrupted_file_is_refused(tmp_path, damage):
    digest = write(tmp_path, mlp_draft())
    data = bytearray((tmp_path / damage).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / damage).write_bytes(bytes(data))
    with pytest.raises(Failure) as caught:
        open_artifact(tmp_path, digest)
    assert caught.value.reason == "ArtifactCorrupt"


def test_eager_pytorch(tmp_path):
    model = load(tmp_path, sleeper_draft(0.0))
    np.testing.assert_array_equal(model.backend.infer({"x": np.ones((2, 1), np.float32)})["y"], [[2], [2]])


def test_torchscript(tmp_path):
    torch = pytest.importorskip("torch")
    draft = mlp_draft()
    torch.jit.script(torch.nn.Linear(64, 10).eval()).save(tmp_path / "m.pt")
    draft.files = {"m.pt": (tmp_path / "m.pt").read_bytes()}
    draft.config |= {"format": "TorchScript", "entry": "m.pt"}
    draft.golden = None
    model = load(tmp_path, draft)
    assert model.backend.infer({"x": np.ones((2, 64), np.float32)})["y"].shape == (2, 10)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_cpu_limit(tmp_path, files, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "536870912\n", 512 << 20),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "536870912\n", 512 << 20),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("absent", "", None),
    ],
)
def test_memory_limit(tmp_path, file, text, limit):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit


@pytest.mark.parametrize(
    ("memory", "workers", "held"),
    [(None, 1, 256), (4096, 1, 256), (512, 1, 128), (512, 2, 64), (64, 1, 32)],
)
def test_what_requests_may_hold_is_a_quarter_of_the_memory_and_one_always_fits(memory, workers, held):
    assert bytes_held(256, 32, memory, workers) == held


def test_without_a_quota_the_limit_is_the_affinity(tmp_path):
    (tmp_path / "cpu.max").write_text("max 100000")
    assert cpu_limit(tmp_path) == cpu_limit(tmp_path / "absent") >= 1


MIXER = """
import torch

class Mixer(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0)

def build():
    return Mixer()
"""


def test_rows_that_depend_on_each_other_are_never_batched(tmp_path):
    plain = load_model(open_artifact(tmp_path / "a", write(tmp_path / "a", mlp_draft())), LoadOptions(max_batch=16))
    assert 1 < plain.max_batch <= 16
    draft = sleeper_draft(0.0)
    draft.files = {"mixer.py": MIXER.encode()}
    draft.config |= {"entrypoint": "mixer:build", "arguments": {}}
    assert load_model(open_artifact(tmp_path / "b", write(tmp_path / "b", draft)), LoadOptions(max_batch=4)).max_batch == 1


@pytest.mark.parametrize(
    ("shapes", "takes"),
    [
        ([["n", 2], ["n"]], True),
        ([["n", 2], ["m"]], False),
        ([[4, 2], [4]], False),
        ([["n", 2], []], False),
        ([["n", "t"], ["n", "t"]], True),
    ],
)
def test_only_a_dimension_that_all_tensors_share_is_a_batch(shapes, takes):
    specs = [TensorSpec(str(i), "float32", tuple(shape)) for i, shape in enumerate(shapes)]
    assert takes_batches(Signature((specs[0],), (specs[1],))) is takes


def test_batch_sizes_end_at_the_limit():
    assert [batch_sizes(size) for size in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_replay_is_held_against_the_golden_outputs(tmp_path):
    model = load_model(open_artifact(tmp_path, write(tmp_path, mlp_draft())), LoadOptions())
    assert model.golden is not None
    right = model.backend.infer(model.golden.inputs)
    assert golden_difference(right, model) is None
    assert "golden output 'y' differs by" in str(golden_difference({"y": right["y"] + 1}, model))
    assert "expected shape" in str(golden_difference({"y": right["y"][:1]}, model))
