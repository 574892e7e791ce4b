"""A source that is one file: an archive, which is unpacked into the model folder, or a model, which becomes its only file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from slipway_runtime.fetch.archive import unpack
from slipway_runtime.fetch.base import Budget, Fetched
from slipway_runtime.fetch.transfer import Transfer
from slipway_runtime.reasons import Failure

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
PLAIN = (
    ".onnx",
    ".pt",
    ".pt2",
    ".npz",
    ".mar",
)  # models in one file; validation data; TorchServe's archive, unpacked like those of other schemes


def is_single(name: str) -> bool:
    """Say whether a name is that of an archive or a model, and not of a folder."""
    return name.lower().endswith((*ARCHIVES, *PLAIN))


def check_name(name: str) -> None:
    """Refuse a file that is neither; raises Failure ModelFolderInvalid."""
    if not is_single(name):
        raise Failure("ModelFolderInvalid", f"{name!r} is none of {', '.join((*ARCHIVES, *PLAIN))}")


def stored(name: str, folder: Path, limit: int, download: Callable[[Path], Transfer]) -> Fetched:
    """Download a file beside the folder, then unpack it or move it there; the digest is the sha256 of the file.

    Raises:
        Failure: what `download` raises; ModelFolderInvalid, SourceTooLarge.
    """
    packed = folder.parent / f".download-{folder.name.strip('.')}"
    try:
        transfer = download(packed)
        if name.lower().endswith(PLAIN):
            shutil.move(packed, folder / name)
        else:
            unpack(packed, name, folder, Budget(limit))
    finally:
        packed.unlink(missing_ok=True)
    return Fetched(f"sha256:{transfer.sha256}", transfer.size)
