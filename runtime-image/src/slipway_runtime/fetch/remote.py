"""A folder of files in a store: listed first, refused when it is too large, then downloaded one file after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipway_runtime.artifact import safe_path
from slipway_runtime.fetch.base import Budget, Fetched, tree_digest
from slipway_runtime.fetch.transfer import Progress, Transfer, completed
from slipway_runtime.reasons import Failure


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a listing.

    Attributes:
        path: relative to the model folder.
        size: in bytes.
        receive: makes one connection, as `completed` wants it.
        check: looks at the complete file, and raises Failure DigestMismatch when it is not the one that was listed; or None.
    """

    path: str
    size: int
    receive: Callable[[Transfer], None]
    check: Callable[[Transfer], None] | None = None


def download_all(files: Sequence[RemoteFile], folder: Path, limit: int, shown: str) -> Fetched:
    """Download a listing into the empty folder.

    Args:
        files: the listing; its paths come from the store and are not trusted.
        folder: empty.
        limit: for the bytes of all files together, checked before the first one is downloaded.
        shown: the source, for messages.

    Raises:
        Failure: SourceTooLarge, ModelFolderInvalid for a path that leaves the folder or too many files, DigestMismatch, or what
            `receive` raises.
    """
    budget = Budget(limit)
    for file in files:
        _check_path(file.path, shown)
        budget.add_file()
        budget.add(file.size)
    progress = Progress(shown, budget.used)
    lines = []
    for file in sorted(files, key=lambda row: row.path):
        transfer = _downloaded(file, folder, progress, shown)
        lines.append((file.path, transfer.sha256))
    return Fetched(tree_digest(lines), budget.used)


def _check_path(path: str, shown: str) -> None:
    try:
        safe_path(path)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"{shown} lists an {error}") from error


def _downloaded(file: RemoteFile, folder: Path, progress: Progress, shown: str) -> Transfer:
    try:
        transfer = Transfer(folder / file.path, file.size, progress)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Failure("ModelFolderInvalid", f"{shown} has {file.path} as a file and as a folder") from error
    except OSError as error:  # a name that is too long
        raise Failure("ModelFolderInvalid", f"{shown}: {file.path} cannot be stored: {error}") from error
    completed(transfer, file.receive, f"{shown}/{file.path}")
    if transfer.size != file.size:
        raise Failure("DigestMismatch", f"{shown}/{file.path} has {transfer.size} bytes, its listing says {file.size}")
    if file.check:
        file.check(transfer)
    return transfer
