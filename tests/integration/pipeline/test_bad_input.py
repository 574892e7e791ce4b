# ruff: noqa: E501 - a table reads best with one row a line
"""One row for every way a source can be wrong: the exit code, the reason, and words that the message must hold."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass, field

import numpy as np
import pytest

from slipway_runtime.reasons import EXIT_CODES

NONE = {"candidates": [{"target": "None"}]}


@dataclass
class Bad:
    name: str
    reason: str
    says: list[str]
    edit: list[tuple[str, str]] = field(default_factory=list)  # in model.py
    yaml: list[tuple[str, str]] = field(default_factory=list)
    conversion: dict = field(default_factory=lambda: NONE)
    environment: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)


def forward(text):
    return [("return self.fc(self.drop(x.flatten(1)))", text)]


BAD = [
    Bad("no module", "EntrypointNotFound", ["nomodule", "model.py"], model={"entrypoint": "nomodule:build"}),
    Bad("no attribute", "EntrypointNotFound", ["make", "build"], model={"entrypoint": "model:make"}),
    Bad(
        "raises",
        "EntrypointFailed",
        ["ValueError: boom", "model.py:", "raise ValueError"],
        [("    return Net(classes)", "    raise ValueError('boom')")],
    ),
    Bad("import raises", "EntrypointFailed", ["No module named 'nowhere'", "model.py:2"], [("import torch\n", "import nowhere\n")]),
    Bad("bad argument", "EntrypointFailed", ["unexpected keyword argument"], model={"arguments": {"colour": 1}}),
    Bad("no module returned", "EntrypointInvalid", ["dict"], [("    return Net(classes)", "    return {}")]),
    Bad(
        "never returns",
        "ConversionTimeout",
        ["within 2 s"],
        [("    return Net(classes)", "    while True: pass")],
        environment={"SLIPWAY_TIMEOUT_SECONDS": "2"},
    ),
    Bad(
        "eats memory step by step",
        "ConversionOutOfMemory",
        ["MiB"],
        [
            (
                "    return Net(classes)",
                "    import time\n    a = []\n    while True:\n        a.append(bytearray(8 << 20)); time.sleep(0.005)",
            )
        ],
        environment={"SLIPWAY_MEMORY_LIMIT_BYTES": str(900 << 20)},
    ),
    Bad(
        "eats memory at once",
        "ConversionOutOfMemory",
        ["memory"],
        [("    return Net(classes)", "    return torch.ones(1 << 40)")],
        environment={"SLIPWAY_MEMORY_LIMIT_BYTES": str(900 << 20)},
    ),
    Bad(
        "crashes",
        "ConversionFailed",
        ["SIGSEGV"],
        [("    return Net(classes)", "    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)")],
    ),
    Bad("killed", "ConversionOutOfMemory", ["killed"], [("    return Net(classes)", "    import os\n    os.kill(os.getpid(), 9)")]),
    Bad("leaves", "ConversionFailed", ["exit code 3"], [("    return Net(classes)", "    import os\n    os._exit(3)")]),
    Bad("weights of other shape", "WeightsMismatch", ["fc.weight", "[10, 128]", "[5, 128]"], model={"arguments": {"classes": 5}}),
    Bad(
        "weights with other keys",
        "WeightsMismatch",
        ["missing", "conv2.weight", "unexpected", "conv.weight"],
        [("self.conv =", "self.conv2 ="), ("self.conv(", "self.conv2(")],
    ),
    Bad("two inputs", "SignatureMismatch", ["other", "image"], [("forward(self, image)", "forward(self, image, other)")]),
    Bad(
        "input shape",
        "SignatureMismatch",
        ["does not accept", "[1, 3, 8, 8]", "model.py:"],
        yaml=[("[batch, 1, 8, 8]", "[batch, 3, 8, 8]")],
    ),
    Bad("output shape", "SignatureMismatch", ["float32 [1, 10]", "[batch, 12]"], yaml=[("[batch, 10]", "[batch, 12]")]),
    Bad("output dtype", "SignatureMismatch", ["float32", "int64"], yaml=[("logits, dtype: float32", "logits, dtype: int64")]),
    Bad("output count", "SignatureMismatch", ["2 outputs", "logits"], forward("return self.fc(x.flatten(1)), x")),
    Bad("input dtype", "SignatureMismatch", ["does not accept", "int64"], yaml=[("image, dtype: float32", "image, dtype: int64")]),
    Bad(
        "no signature",
        "SignatureMissing",
        ["spec.signature"],
        yaml=[("signature:", "labels: [a]\n#"), ("  inputs", "#"), ("  outputs", "#"), ("labels: [zero", "#[zero")],
    ),
    Bad("unknown field", "ModelFolderInvalid", ["colour"], yaml=[("format: PyTorch", "format: PyTorch\ncolour: red")]),
    Bad("not yaml", "ModelFolderInvalid", ["YAML"], yaml=[("format: PyTorch", "format: [")]),
    Bad("weights absent", "ModelFolderInvalid", ["other.safetensors"], model={"weights": "other.safetensors"}),
    Bad("weights outside", "ModelFolderInvalid", ["unsafe path"], model={"weights": "../x.safetensors"}),
    Bad("int8", "UnsupportedConversion", ["Int8Static"], conversion={"candidates": [{"target": "None", "precision": "Int8Static"}]}),
    Bad(
        "dropout forced on",
        "ParityFailed",
        ["not deterministic", "logits"],
        forward("return self.fc(torch.nn.functional.dropout(x.flatten(1), training=True))"),
    ),
    Bad("NaN", "NonFiniteOutputs", ["source model", "logits"], forward("return self.fc(x.flatten(1)) * float('nan')")),
    Bad(
        "opens a socket", "EntrypointFailed", ["PermissionError", "socket"], [("import torch\n", "import torch, socket\nsocket.socket()\n")]
    ),
    Bad(
        "opens a socket in a child",
        "EntrypointFailed",
        ["CalledProcessError"],
        [
            (
                "import torch\n",
                "import torch, subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import socket; socket.socket(socket.AF_INET6)'], check=True)\n",
            )
        ],
    ),
    Bad(
        "netlink",
        "EntrypointFailed",
        ["PermissionError"],
        [("import torch\n", "import torch, socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n")],
    ),
    Bad(
        "unsupported operator",
        "UnsupportedOperator",
        ["bessel_j0"],
        forward("return torch.special.bessel_j0(self.fc(x.flatten(1)))"),
        conversion={},
    ),
    Bad(
        "control flow, ONNX",
        "ConversionFailed",
        ["depends on values", "model.py"],
        forward("x = self.fc(x.flatten(1))\n        return x * 2 if x.sum() > 0 else x"),
        conversion={},
    ),
    Bad(
        "control flow, TorchScript",
        "ConversionFailed",
        ["depends on values"],
        forward("x = self.fc(x.flatten(1))\n        return x * 2 if x.sum() > 0 else x"),
        conversion={"candidates": [{"target": "TorchScript"}]},
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_model(bad, pipeline, model_folder, claim):
    for name, edits in (("model.py", bad.edit), ("model.yaml", bad.yaml)):
        path = model_folder / name
        text = path.read_text()
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    last = pipeline.run({"model": claim(model_folder) | bad.model, "conversion": bad.conversion}, ("fetch", "convert"), **bad.environment)
    assert (last.step, last.reason) == ("convert", bad.reason), last.log
    assert last.code == EXIT_CODES[bad.reason]
    for words in bad.says:
        assert words in last.text


def test_a_pickle_is_refused_by_name(pipeline, model_folder, claim):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/slipway-pwned",)

    import torch  # noqa: PLC0415

    torch.save({"fc.weight": Evil()}, model_folder / "weights.pt")
    last = pipeline.run({"model": claim(model_folder) | {"weights": "weights.pt"}, "conversion": NONE}, ("fetch", "convert"))
    assert (last.code, last.reason) == (24, "UnsafePickle"), last.log
    assert "system" in last.text
    assert not os.path.exists("/tmp/slipway-pwned")


def test_a_weights_only_state_dict_and_a_truncated_one(pipeline, model_folder, claim):
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    torch.save(load_file(model_folder / "weights.safetensors"), model_folder / "weights.pt")
    spec = {"model": claim(model_folder) | {"weights": "weights.pt"}, "conversion": NONE}
    assert pipeline.run(spec, ("fetch", "convert")).code == 0
    data = (model_folder / "weights.pt").read_bytes()
    (model_folder / "weights.pt").write_bytes(data[: len(data) // 2])
    claim(model_folder)
    assert pipeline.run(spec, ("fetch", "convert")).reason == "ModelFolderInvalid"


FAULTS = {
    "dropped layer": lambda session_outputs: session_outputs * 0,
    "NaN": lambda outputs: outputs * np.nan,
    "another shape": lambda outputs: outputs[:, :5],
    "another dtype": lambda outputs: outputs.astype(np.float64),
    "an offset": lambda outputs: outputs + 0.01,
    "classes in another order": lambda outputs: outputs[:, ::-1],
    "batch frozen at the first sample": lambda outputs: np.repeat(outputs[:1], len(outputs), 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gate_sees_seeded_faults(fault):
    from slipway_runtime.reasons import Failure  # noqa: PLC0415
    from slipway_runtime.validate.gate import compare, judged  # noqa: PLC0415

    generator = np.random.default_rng(1)
    weights = generator.standard_normal((4, 10)).astype(np.float32)
    samples = [{"x": generator.standard_normal((size, 4)).astype(np.float32)} for size in (1, 16, 16)]
    reference = [{"y": batch["x"] @ weights} for batch in samples]
    try:
        parity, _ = compare(lambda batch: {"y": FAULTS[fault](batch["x"] @ weights)}, samples, reference)
        finding = judged(parity, None, {})
    except Failure as failure:
        finding = failure
    assert finding is not None
    assert finding.reason == ("NonFiniteOutputs" if fault == "NaN" else "ParityFailed")
    assert fault in ("NaN",) or "y" in finding.message


def test_stale_weights_do_not_pass(pipeline, model_folder, claim):
    """A candidate built from other weights than the source: what convert wrote is exchanged before validate."""
    spec = {"model": claim(model_folder), "conversion": NONE}
    pipeline.run(spec, ("fetch", "convert"))
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    path = pipeline.work / "candidates" / "0-none" / "weights.safetensors"
    save_file({key: value + 0.1 * torch.ones_like(value) for key, value in load_file(path).items()}, path)
    last = pipeline.run(spec, ("validate",))
    assert (last.code, last.reason) == (40, "ParityFailed")
    assert "limit is 0.001" in last.text
    assert last.message["candidates"][0]["verdict"] == "Failed"


def test_a_candidate_changed_after_validation_is_not_published(pipeline, model_folder, claim):
    spec = {"model": claim(model_folder), "conversion": NONE}
    pipeline.run(spec, ("fetch", "convert", "validate"))
    path = pipeline.work / "candidates" / "0-none" / "model.py"
    path.write_text(path.read_text() + "\n")
    assert pipeline.run(spec, ("publish",)).reason == "ValidationFailed"


def test_onnx_external_data_outside_the_folder(pipeline, claim, tmp_path):
    import onnx  # noqa: PLC0415
    from onnx import TensorProto, helper  # noqa: PLC0415

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../../etc/passwd")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [value("x", 1, ["batch", 4])], [value("y", 1, ["batch", 4])], [weight]
    )
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    last = pipeline.run({"model": claim(folder)}, ("fetch", "convert"))
    assert last.reason == "ModelFolderInvalid", last.log
    assert "etc/passwd" in last.text
    assert onnx
    (folder / "model.onnx").write_bytes(b"not onnx")
    claim(folder)
    assert pipeline.run({"model": claim(folder)}, ("fetch", "convert")).reason == "ModelFolderInvalid"


def tar_bytes(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


ARCHIVES = {
    "dots": tar_bytes(("../evil", tarfile.REGTYPE, b"x")),
    "absolute": tar_bytes(("/evil", tarfile.REGTYPE, b"x")),
    "symlink": tar_bytes(("link", tarfile.SYMTYPE, b"")),
    "hardlink": tar_bytes(("link", tarfile.LNKTYPE, b"")),
    "device": tar_bytes(("dev", tarfile.CHRTYPE, b"")),
    "fifo": tar_bytes(("pipe", tarfile.FIFOTYPE, b"")),
    "twice": tar_bytes(("a", tarfile.REGTYPE, b"x"), ("a", tarfile.REGTYPE, b"y")),
    "truncated": tar_bytes(("a", tarfile.REGTYPE, os.urandom(9999)))[:5000],
    "garbage": b"garbage" * 99,
    "empty": b"",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_unsafe_archive(name, pipeline, web):
    base, folder = web
    (folder / "m.tgz").write_bytes(ARCHIVES[name])
    last = pipeline.run({"model": {"uri": f"{base}/m.tgz"}}, ("fetch",))
    assert (last.code, last.reason) == (15, "ModelFolderInvalid"), last.log


def test_zip_bomb_and_zip_slip(pipeline, web):
    base, folder = web
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(4 << 20))
    small = {"SLIPWAY_MAX_SOURCE_BYTES": str(1 << 20)}
    assert pipeline.run({"model": {"uri": f"{base}/m.zip"}}, ("fetch",), **small).reason == "SourceTooLarge"
    with zipfile.ZipFile(folder / "m.zip", "w") as archive:
        archive.writestr("../evil", b"x")
    assert pipeline.run({"model": {"uri": f"{base}/m.zip"}}, ("fetch",)).reason == "ModelFolderInvalid"
    assert not list(pipeline.work.rglob("evil"))


def test_every_folder_file_is_regular(pipeline, model_folder, claim):
    claim(model_folder)
    (pipeline.work / "origin" / "m" / "link").symlink_to("/etc/passwd")
    last = pipeline.run({"model": {"uri": "pvc://models/m"}}, ("fetch",))
    assert last.reason == "ModelFolderInvalid"
    (pipeline.work / "origin" / "out").symlink_to("/etc")
    assert pipeline.run({"model": {"uri": "pvc://models/out"}}, ("fetch",)).reason == "ModelFolderInvalid"
    assert pipeline.run({"model": {"uri": "pvc://models/../x"}}, ("fetch",)).reason == "ModelFolderInvalid"
    assert pipeline.run({"model": {"uri": "pvc://models/none"}}, ("fetch",)).reason == "SourceNotFound"
    shutil.rmtree(pipeline.work / "origin")
