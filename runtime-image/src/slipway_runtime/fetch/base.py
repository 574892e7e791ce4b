"""What every kind of source offers, and copying with limits."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Settings

_CHUNK = 1 << 20
MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: the digest of the source, its size in bytes, and the commit where the source has such a thing."""

    digest: str
    size: int
    revision: str | None = None


class Source(ABC):
    """A place where a model folder lies."""

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = uri
        self.settings = settings

    def secret(self, *keys: str) -> str | None:
        """Return the value of the first of these keys that the user's Secret has, without surrounding space; None for an empty one."""
        for key in keys:
            path = self.settings.source_credentials / key
            if path.is_file():
                return path.read_text(encoding="utf-8", errors="replace").strip() or None
        return None

    def secret_keys(self) -> list[str]:
        """Return the names of the keys in the user's Secret."""
        folder = self.settings.source_credentials
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("..")) if folder.is_dir() else []

    def resolve(self) -> str | None:
        """Return the source digest where it is known without a download."""
        return None

    @abstractmethod
    def fetch(self, folder: Path) -> Fetched:
        """Bring the model folder into the empty `folder`.

        Raises:
            Failure: with one of the reasons of fetch.
        """


class Budget:
    """Counts bytes and files against the limits of a source."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.files = 0

    def add(self, size: int) -> None:
        """Count bytes; raises Failure SourceTooLarge when there are too many."""
        self.used += size
        if self.used > self.limit:
            raise Failure("SourceTooLarge", f"the source has more than {self.limit} bytes")

    def add_file(self) -> None:
        """Count a file; raises Failure ModelFolderInvalid when there are too many."""
        self.files += 1
        if self.files > MAX_FILES:
            raise Failure("ModelFolderInvalid", f"the source has more than {MAX_FILES} files")


def copy_tree(source: Path, folder: Path, budget: Budget) -> Fetched:
    """Copy regular files, and hash them as the contract says; links and hidden folders of kubelet are not followed.

    Raises:
        Failure: ModelFolderInvalid for a link or a special file, SourceTooLarge.
    """
    lines = []
    for path in _regular_files(source):
        relative = path.relative_to(source).as_posix()
        budget.add_file()
        lines.append((relative, copy_file(path, folder / relative, budget)))
    return Fetched(tree_digest(lines), budget.used)


def tree_digest(files: list[tuple[str, str]]) -> str:
    """Return the digest of a folder from (path, sha256) pairs."""
    text = "".join(sorted(f"{digest}  {path}\n" for path, digest in files))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def copy_file(source: Path, target: Path, budget: Budget) -> str:
    """Copy a regular file without following a link at its end; returns its sha256 in hex."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError as error:
        raise Failure("CredentialsRejected", f"uid {os.getuid()} may not read {source.name} of the source") from error
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
            raise Failure("ModelFolderInvalid", f"{source.name} is not a regular file")
        while chunk := reader.read(_CHUNK):
            budget.add(len(chunk))
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def _regular_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            found += _regular_files(path)
        elif stat.S_ISREG(mode):
            found.append(path)
        else:
            kind = "a link" if stat.S_ISLNK(mode) else "a special file"
            raise Failure("ModelFolderInvalid", f"{path.name} is {kind}; a model folder holds regular files only")
    return found
