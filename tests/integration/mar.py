"""Archives made by torch-model-archiver itself, and the handlers in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from unit.runtime.serve.artifacts import Draft

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)
"""
TEXT = {
    "inputs": [{"name": "data", "dtype": "string", "shape": ["batch"]}],
    "outputs": [{"name": "answer", "dtype": "string", "shape": ["batch"]}],
}
LABELS = {"0": ["n01", "cat"], "1": ["n02", "dog"], "2": "fish"}
# What users write: a class over TorchServe's base, an extra module, names of classes, and an error of its own.
CLASS = """
import json

import torch
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException

from scaling import scale


class Scorer(BaseHandler):
    def preprocess(self, data):
        rows = []
        for row in data:
            value = row.get("data") or row.get("body")
            if isinstance(value, (bytes, bytearray)):
                value = json.loads(value)
            if isinstance(value, dict):
                value = value["x"]
            if len(value) != 4:
                raise PredictionException("x must have 4 numbers", 422)
            rows.append(value)
        return scale(torch.tensor(rows, dtype=torch.float32, device=self.device))

    def postprocess(self, data):
        best = torch.softmax(data, 1).max(1)
        self.context.set_response_header(0, "x-handler", self.context.model_name)
        return [{"label": self.mapping[str(int(i))], "score": float(p)} for i, p in zip(best.indices, best.values)]
"""
SCALING = "def scale(x):\n    return x * 0.5\n"
# The other form: a function of the module, which is called without data first.
FUNCTION = """
import os
import torch

model = None


def handle(data, context):
    global model
    if data is None:
        folder = context.system_properties["model_dir"]
        model = torch.jit.load(os.path.join(folder, context.manifest["model"]["serializedFile"]))
        return None
    context.metrics.add_counter("calls", 1)
    rows = [row.get("data") if row.get("data") is not None else row.get("body") for row in data]
    with torch.inference_mode():
        return model(torch.tensor(rows, dtype=torch.float32)).tolist()
"""


def net() -> torch.nn.Module:
    """The module of NET, seeded."""
    torch.manual_seed(0)
    scope: dict = {}
    exec(NET, scope)
    return scope["Net"]().eval()


def packed(
    folder: Path, handler: str, files: dict[str, str | bytes], *, eager: bool = True, requirements: str = "", module: str = NET
) -> Path:
    """Run torch-model-archiver as its users do; returns the .mar.

    Args:
        folder: where the files are written.
        handler: a file among `files`, or the name of a default handler.
        files: name -> content; all but the handler become extra files.
        eager: a model file with a state dict, else TorchScript.
        requirements: of requirements.txt, none when empty.
        module: the model file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"index_to_name.json": json.dumps(LABELS), **files, "model.py": module}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if eager:
        scope: dict = {}
        torch.manual_seed(0)
        exec(module, scope)
        torch.save(scope["Net"]().state_dict(), folder / "weights.pt")
    else:
        torch.jit.trace(net(), torch.zeros(2, 4)).save(folder / "weights.pt")
    extra = ",".join(sorted({"index_to_name.json", *files} - {handler.partition(":")[0].removesuffix(".py") + ".py"}))
    command = [str(Path(sys.executable).with_name("torch-model-archiver")), "--model-name", "m", "--version", "1.0", "--force"]
    command += ["--serialized-file", "weights.pt", "--handler", handler, "--extra-files", extra, "--export-path", "out"]
    command += ["--model-file", "model.py"] if eager else []
    if requirements:
        (folder / "requirements.txt").write_text(requirements)
        command += ["--requirements-file", "requirements.txt"]
    (folder / "out").mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(folder)}  # it works in a folder of the model's name there
    subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=120, env=environment)
    return folder / "out" / "m.mar"


def draft_of(mar: Path, signature: dict | None = None) -> Draft:
    """The artifact that the pipeline makes of an archive with a handler of its own."""
    with zipfile.ZipFile(mar) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    return Draft(files, {"format": "TorchServe", "entry": "MAR-INF/MANIFEST.json", "signature": signature or TEXT})
