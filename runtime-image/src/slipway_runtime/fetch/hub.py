"""`hf://OWNER/NAME[@REVISION][/FOLDER]`: a model repository of the Hugging Face hub, or of a hub that speaks its API.

The branch or tag is resolved to a commit once; the listing and every file are read at that commit, and each file is checked against the
listing: the sha256 of LFS for large ones, git's own hash for the others. The digest of the source is that of the folder, as for a claim.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from slipway_runtime.fetch.base import Fetched, Source
from slipway_runtime.fetch.http import HttpFile
from slipway_runtime.fetch.remote import RemoteFile, download_all
from slipway_runtime.fetch.transfer import Transfer
from slipway_runtime.oci import error_text
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Settings, log

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

_URI = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_DEFAULT = "https://huggingface.co"
_TIMEOUT = 60.0
_CHUNK = 1 << 20


class HubSource(Source):
    """A repository at a revision, or a folder in it."""

    def __init__(self, uri: str, settings: Settings) -> None:
        super().__init__(uri, settings)
        found = _URI.fullmatch(uri)
        if not found:
            raise Failure("InvalidArguments", f"{uri!r} is not hf://OWNER/NAME[@REVISION][/FOLDER]")
        self._repository = found[1]
        self._revision = unquote(found[2]) if found[2] else None
        self._folder = (found[3] or "").strip("/")
        self._endpoint = (self.secret("HF_ENDPOINT") or _DEFAULT).rstrip("/")
        self._token = self.secret("HF_TOKEN", "token")

    def fetch(self, folder: Path) -> Fetched:
        """Resolve the commit, list its files, and download them."""
        info = self._info()
        commit = str(info.sha)
        log.info("%s is at commit %s", self.uri, commit)
        prefix = f"{self._folder}/" if self._folder else ""
        found = [row for row in info.siblings or [] if row.rfilename.startswith(prefix) and not row.rfilename.startswith(".git")]
        if not found:
            raise Failure("SourceNotFound", f"{self.uri}: there is no file in {self._folder or 'the repository'} at commit {commit}")
        files = [self._file(row, prefix, commit) for row in found]
        fetched = download_all(files, folder, self.settings.max_source_bytes, self.uri)
        return Fetched(fetched.digest, fetched.size, commit)

    def _info(self) -> ModelInfo:
        from huggingface_hub import HfApi, errors  # noqa: PLC0415 - not in the ONNX-only image

        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            return api.model_info(self._repository, revision=self._revision, files_metadata=True, timeout=_TIMEOUT)
        except errors.GatedRepoError as error:
            raise self._refused(f"{self._repository} is gated: its owner must grant access to the account of the token") from error
        except errors.RevisionNotFoundError as error:
            raise Failure("SourceNotFound", f"{self._repository} has no revision {self._revision} at {self._endpoint}") from error
        except errors.RepositoryNotFoundError as error:
            raise self._absent(getattr(error.response, "status_code", 404)) from error
        except errors.HFValidationError as error:
            raise Failure("InvalidArguments", f"{self.uri}: {error}") from error
        except errors.HfHubHTTPError as error:
            raise self._answered(error.response.status_code) from error
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise Failure("SourceUnreachable", f"{self._endpoint}: {error_text(error)}") from error
        except Exception as error:  # the HTTP library's own errors are no OSErrors
            raise Failure("SourceUnreachable", f"{self._endpoint}: {error_text(error)}") from error

    def _absent(self, status: int) -> Failure:
        """Return the failure for a repository that is not there, or not for this account: the hub does not say which."""
        if status in (401, 403):
            return self._refused(f"{self._endpoint} has no {self._repository}, or not for this account (HTTP {status})")
        return Failure("SourceNotFound", f"{self._endpoint} has no model {self._repository}, or not for this account")

    def _answered(self, status: int) -> Failure:
        if status in (401, 403):
            return self._refused(f"{self._endpoint} refuses the token for {self._repository} (HTTP {status})")
        return Failure("SourceUnreachable", f"{self._endpoint} answers HTTP {status} for {self._repository}")

    def _refused(self, text: str) -> Failure:
        if self._token:
            return Failure("CredentialsRejected", text)
        return Failure("CredentialsMissing", f"{text}; put a token as HF_TOKEN into the Secret of spec.model.credentialsSecretRef")

    def _file(self, row: RepoSibling, prefix: str, commit: str) -> RemoteFile:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415

        url = hf_hub_url(self._repository, row.rfilename, revision=commit, endpoint=self._endpoint)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}  # not sent on to another host by requests
        shown = f"{self.uri} at {commit[:12]}: {row.rfilename}"
        check = partial(_check, row, shown)
        return RemoteFile(row.rfilename.removeprefix(prefix), int(row.size or 0), HttpFile(url, shown, headers).receive, check)


def _check(row: RepoSibling, shown: str, transfer: Transfer) -> None:
    want, got = (row.lfs.sha256, transfer.sha256) if row.lfs else (row.blob_id, _git_hash(transfer.path, transfer.size))
    if want and want != got:
        raise Failure("DigestMismatch", f"{shown} has the hash {got}, the hub's listing says {want}")


def _git_hash(path: Path, size: int) -> str:
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
