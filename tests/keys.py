"""Pairs of keys as a user makes them: by openssl, apart from the code under test."""

from __future__ import annotations

import subprocess
from pathlib import Path

CURVE = ("ecparam", "-genkey", "-noout", "-name")


def openssl(*arguments: str, data: bytes | None = None) -> bytes:
    """What openssl prints; fails the test when openssl fails."""
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True, timeout=30).stdout


def make_keys(folder: Path, kind: tuple[str, ...] = (*CURVE, "prime256v1")) -> Path:
    """private.pem and public.pem in a folder, as the Secret is mounted."""
    folder.mkdir(exist_ok=True)
    (folder / "private.pem").write_bytes(openssl(*kind))
    (folder / "public.pem").write_bytes(openssl("pkey", "-in", str(folder / "private.pem"), "-pubout"))
    return folder
