"""A listing from a store is not trusted: its paths, sizes and number are checked before the first byte is downloaded."""

from __future__ import annotations

import pytest

from slipway_runtime.fetch.base import MAX_FILES
from slipway_runtime.fetch.remote import RemoteFile, download_all
from slipway_runtime.reasons import Failure


def sends(data):
    return lambda transfer: transfer.append(data)


def never(_):
    raise AssertionError("nothing may be downloaded")


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "", "a\\b", "a\0b", "."])
def test_a_listing_that_climbs(tmp_path, path):
    with pytest.raises(Failure, match="ModelFolderInvalid"):
        download_all([RemoteFile("good", 1, never), RemoteFile(path, 1, never)], tmp_path, 100, "s3://b/p")


def test_a_listing_that_is_too_large_or_too_long(tmp_path):
    with pytest.raises(Failure, match="SourceTooLarge"):
        download_all([RemoteFile("a", 60, never), RemoteFile("b", 60, never)], tmp_path, 100, "s3://b/p")
    with pytest.raises(Failure, match="ModelFolderInvalid"):
        download_all([RemoteFile(f"f{number}", 0, never) for number in range(MAX_FILES + 1)], tmp_path, 100, "s3://b/p")


@pytest.mark.parametrize(("data", "reason"), [(b"12", "DigestMismatch"), (b"1234", "SourceTooLarge")])
def test_a_file_of_another_size_than_listed(tmp_path, data, reason):
    with pytest.raises(Failure, match=reason):
        download_all([RemoteFile("a", 3, sends(data))], tmp_path, 100, "s3://b/p")


def test_a_file_that_is_also_a_folder(tmp_path):
    with pytest.raises(Failure, match="ModelFolderInvalid"):
        download_all([RemoteFile("a", 1, sends(b"x")), RemoteFile("a/b", 1, sends(b"x"))], tmp_path, 100, "s3://b/p")


def test_the_digest_is_that_of_a_folder(tmp_path):
    fetched = download_all([RemoteFile("b/c", 1, sends(b"y")), RemoteFile("a", 1, sends(b"x"))], tmp_path, 100, "s3://b/p")
    # printf 'a' etc.: sha256 of the sorted lines "<sha256>  <path>\n"
    import hashlib  # noqa: PLC0415

    lines = sorted(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for data, path in ((b"x", "a"), (b"y", "b/c")))
    assert fetched.digest == "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (tmp_path / "b" / "c").read_bytes() == b"y"
