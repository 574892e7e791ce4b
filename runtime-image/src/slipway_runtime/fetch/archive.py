"""Unpacks an archive from an untrusted place: regular files only, inside the folder, within limits."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from slipway_runtime.artifact import safe_path
from slipway_runtime.fetch.base import Budget
from slipway_runtime.reasons import Failure

_CHUNK = 1 << 20
_UNIX_TYPE = 0o170000
_UNIX_REGULAR = 0o100000
Member = tuple[str, Callable[[], IO[bytes]]]


def unpack(packed: Path, name: str, folder: Path, budget: Budget) -> None:
    """Unpack a .tar, .tar.gz, .tgz, .zip or .mar; a single top folder is stripped.

    Args:
        packed: the archive.
        name: its name, whose ending says what it is.
        folder: empty.
        budget: for unpacked bytes and files.

    Raises:
        Failure: ModelFolderInvalid for an unsafe path, a link, a device, too many files or a damaged archive; SourceTooLarge.
    """
    members = _zip_members if name.lower().endswith((".zip", ".mar")) else _tar_members
    try:
        for path, opened in members(packed):
            budget.add_file()
            _write(path, opened, folder, budget)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError) as error:
        raise Failure("ModelFolderInvalid", f"{name} is damaged: {error}") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Failure("ModelFolderInvalid", f"{name} holds a path twice: {error.filename}") from error
    except OSError as error:  # gzip.BadGzipFile, a name that is too long
        raise Failure("ModelFolderInvalid", f"{name} cannot be unpacked: {error}") from error
    _strip_top(folder)


def _write(path: str, opened: Callable[[], IO[bytes]], folder: Path, budget: Budget) -> None:
    try:
        target = folder / safe_path(path)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"the archive holds an {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened() as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            budget.add(len(chunk))
            writer.write(chunk)


def _tar_members(packed: Path) -> Iterator[Member]:
    with tarfile.open(packed, "r:*") as archive:
        for member in archive:
            path = member.name.removeprefix("./").rstrip("/")
            if member.isdir():
                _check_folder(path)
            elif member.isreg():
                yield path, lambda member=member: archive.extractfile(member)  # type: ignore[misc]
            else:
                kind = "a link" if member.issym() or member.islnk() else "a special file"
                raise Failure("ModelFolderInvalid", f"{member.name} in the archive is {kind}; only regular files are unpacked")


def _zip_members(packed: Path) -> Iterator[Member]:
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            mode = (info.external_attr >> 16) & _UNIX_TYPE
            if info.is_dir():
                _check_folder(info.filename.rstrip("/"))
            elif mode in (0, _UNIX_REGULAR):
                yield info.filename.removeprefix("./"), lambda info=info: archive.open(info)  # type: ignore[misc]
            else:
                raise Failure("ModelFolderInvalid", f"{info.filename} in the archive is a link or special file")


def _check_folder(path: str) -> None:
    if path in ("", "."):
        return
    try:
        safe_path(path)
    except ValueError as error:
        raise Failure("ModelFolderInvalid", f"the archive holds an {error}") from error


def _strip_top(folder: Path) -> None:
    entries = list(folder.iterdir())
    if len(entries) != 1 or not entries[0].is_dir() or (entries[0] / "__init__.py").exists():
        return
    top = entries[0].rename(folder / ".top")
    for path in list(top.iterdir()):
        shutil.move(path, folder / path.name)
    top.rmdir()
