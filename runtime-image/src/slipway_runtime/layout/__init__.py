"""Lays a pulled artifact out as another server wants to find it: a model repository of Triton, a model store of TorchServe.

The files are linked, not copied, and were all checked before. Imports no torch, runs no model code.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slipway_runtime.reasons import Failure

if TYPE_CHECKING:
    from slipway_runtime.artifact import Artifact

log = logging.getLogger("slipway")

SLIPWAY, TRITON, TORCHSERVE = "Slipway", "Triton", "TorchServe"  # the values of ServingRuntime.spec.layout
LAYOUTS = (SLIPWAY, TRITON, TORCHSERVE)


@dataclass(frozen=True, slots=True)
class Place:
    """What a layout depends on besides the artifact.

    Attributes:
        model_name: the model's name in paths.
        port: of inference requests.
        metrics_port: of the metrics.
        max_batch: rows of a batch; 1: no batching.
        max_delay: seconds that a request may wait for others.
        threads: CPUs of the server.
        has_gpu: whether it gets an accelerator.
        labels: class names by class number; None: those of the artifact.
    """

    model_name: str
    port: int = 8080
    metrics_port: int = 8082
    max_batch: int = 1
    max_delay: float = 0.0
    threads: int = 1
    has_gpu: bool = False
    labels: Sequence[str] | None = None


def lay_out(artifact: Artifact, layout: str, output: Path, place: Place) -> None:
    """Make `output` anew; there is never half of it under that name.

    Raises:
        Failure: InvalidArguments when the server has no place for this format, or when its names cannot be told to it.
    """
    from slipway_runtime.layout import torchserve, triton  # noqa: PLC0415 - only where they are used

    writers: dict[str, Callable[[Artifact, Path, Place], None]] = {TRITON: triton.write, TORCHSERVE: torchserve.write}
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        writers[layout](artifact, partial, place)
    except Failure:
        shutil.rmtree(partial)
        raise
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)
    log.info("laid out for %s in %s", layout, output)


def model_files(artifact: Artifact) -> Iterator[str]:
    """Return the paths of what the model consists of: all files but the golden data, which only our server replays."""
    golden = {artifact.golden.inputs, artifact.golden.outputs} if artifact.golden else set()
    return (file.path for file in artifact.files if file.path not in golden)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the folders are on different volumes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)
