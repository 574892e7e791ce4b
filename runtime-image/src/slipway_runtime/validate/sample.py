"""The command `slipway-runtime sample`: shows one sample, the source's outputs and a candidate's, as validate saw them.

For a folder (SLIPWAY_WORK) in which fetch and convert have run with the same SLIPWAY_ARTIFACT_SPEC.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

from slipway_runtime.artifact import Signature
from slipway_runtime.candidates import BUILD_KEYS, CONVERT_REPORT, REFERENCE, SAMPLES, candidate_folder, read_report
from slipway_runtime.reasons import Failure
from slipway_runtime.samples import Batch, read_batches
from slipway_runtime.sandbox import deny_sockets
from slipway_runtime.settings import Settings
from slipway_runtime.validate.loaders import load
from slipway_runtime.validate.parity import batch_length


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("candidate", type=int, help="number of the candidate in the spec, from 0")
    parser.add_argument("index", type=int, help="index of the sample, as a message names it")


def run(settings: Settings, candidate: int, index: int) -> None:
    """Print a JSON object: inputs, outputs of source and candidate, and the largest difference of each output.

    Raises:
        Failure: InvalidArguments for a candidate or a sample that is not there; else as validate.
    """
    deny_sockets()
    report = read_report(settings.candidates / CONVERT_REPORT)
    rows = report["candidates"]
    if not 0 <= candidate < len(rows) or rows[candidate]["verdict"] != "Passed":
        raise Failure("InvalidArguments", f"candidate {candidate} was not built; there are {len(rows)}, numbered from 0")
    number, offset = _position(read_batches(settings.candidates / SAMPLES), index)
    row = rows[candidate]
    built = {key: row[key] for key in BUILD_KEYS if key in row}
    signature = Signature.from_json(report["signature"])
    runner = load(candidate_folder(settings.candidates, candidate, row["target"]), built, signature, row["precision"])
    batch = read_batches(settings.candidates / SAMPLES)[number]
    source, got = read_batches(settings.candidates / REFERENCE)[number], runner(batch)
    value = {"inputs": _one(batch, offset), "source": _one(source, offset), "candidate": _one(got, offset)}
    difference = {name: float(np.abs(got[name].astype(np.float64) - array.astype(np.float64)).max()) for name, array in source.items()}
    json.dump(value | {"batch": number, "maxAbsoluteErrorOfBatch": difference}, sys.stdout)
    sys.stdout.write("\n")


def _position(batches: list[Batch], index: int) -> tuple[int, int]:
    left = index
    for number, batch in enumerate(batches):
        if 0 <= left < batch_length(batch):
            return number, left
        left -= batch_length(batch)
    raise Failure("InvalidArguments", f"there is no sample {index}; there are {index - left} of them, numbered from 0")


def _one(batch: Batch, offset: int) -> dict[str, Any]:
    length = batch_length(batch)
    return {name: (array[offset] if array.ndim and len(array) == length else array).tolist() for name, array in batch.items()}
