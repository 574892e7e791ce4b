"""`s3://`, `gs://`, `az://`: a folder of a bucket, or one archive or model file in it. One client for all; accounts.py has what
differs.

A source is listed before it is downloaded, so that one that is too large costs nothing, and each object is asked for with the ETag of the
listing, so that an object that changes meanwhile is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slipway_runtime.fetch.accounts import Account, azure, google, s3
from slipway_runtime.fetch.base import MAX_FILES, Fetched, Source
from slipway_runtime.fetch.remote import RemoteFile, download_all
from slipway_runtime.fetch.single import is_single, stored
from slipway_runtime.fetch.transfer import Broken, Progress, Transfer, completed
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Settings

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

_ACCOUNTS: dict[str, Callable[[Source, str], Account]] = {"s3": s3, "gs": google, "az": azure}
_CHUNK = 1 << 20
_CAUSES = re.compile(
    r"(Connection refused|failed to lookup address information|Name or service not known|No route to host|Connection reset|"
    r"connection closed before message completed|invalid peer certificate: \w+|certificate verify failed|operation timed out|timed out|"
    r"error decoding response body|request or response body error|end of file before message length reached)",
    re.IGNORECASE,
)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_ABSENT = re.compile(r"<Code>(?:NoSuchBucket|NoSuchKey|ContainerNotFound|BlobNotFound)</Code>")
_REJECTED = re.compile(
    r"<Code>(?:AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed|AuthorizationFailure|"
    r"NoAuthenticationInformation|PublicAccessNotPermitted|XAdminUserNotFound)</Code>|\b40[13] (?:Unauthorized|Forbidden)\b"
)


class ObjectStoreSource(Source):
    """`s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`; the account and another endpoint stand in the Secret."""

    def __init__(self, uri: str, settings: Settings) -> None:
        super().__init__(uri, settings)
        self._bucket, _, path = uri.partition("://")[2].partition("/")
        self._path = path.strip("/")

    def fetch(self, folder: Path) -> Fetched:
        """Download the one file, or every object of the folder."""
        account = _ACCOUNTS[self.uri.partition("://")[0]](self, self._bucket)
        store = account.store()
        if is_single(self._path):
            found = self._asked(account, partial(_head, store, self._path))
            name = self._path.rpartition("/")[2]
            return stored(name, folder, self.settings.max_source_bytes, partial(self._single, account, store, found))
        return download_all(self._listing(account, store), folder, self.settings.max_source_bytes, self.uri)

    def _single(self, account: Account, store: ObjectStore, found: ObjectMeta, path: Path) -> Transfer:
        transfer = Transfer(path, self.settings.max_source_bytes, Progress(self.uri))
        transfer.expect(found["size"])
        return completed(transfer, partial(self._receive, account, store, found), self.uri)

    def _listing(self, account: Account, store: ObjectStore) -> list[RemoteFile]:
        prefix = f"{self._path}/" if self._path else ""
        found = self._asked(account, partial(_listed, store, prefix))
        if not found:
            raise Failure("SourceNotFound", f"{self.uri}: there is no object in {account.name} whose name starts with {prefix!r}")
        return [
            RemoteFile(meta["path"].removeprefix(prefix), meta["size"], partial(self._receive, account, store, meta))
            for meta in found
            if not (meta["path"].endswith("/") and not meta["size"])  # what consoles make for an empty folder
        ]

    def _receive(self, account: Account, store: ObjectStore, meta: ObjectMeta, transfer: Transfer) -> None:
        """Make one connection: the rest of the object, if it is still the listed one."""
        if transfer.size >= meta["size"]:
            return
        self._called(account, partial(_append, store, meta, transfer))
        if transfer.size < meta["size"]:
            raise Broken(f"the connection closed after {transfer.size} of {meta['size']} bytes")

    def _asked(self, account: Account, call: Callable[[], Any]) -> Any:
        """Call the store for something small, which its client repeats by itself."""
        try:
            return self._called(account, call)
        except Broken as error:
            raise Failure("SourceUnreachable", f"{self.uri}: {error}") from error

    def _called(self, account: Account, call: Callable[[], Any]) -> Any:
        """Call the store; what it raises becomes a reason, and its text loses whatever is secret."""
        from obstore import exceptions  # noqa: PLC0415 - not in the ONNX-only image

        try:
            return call()
        except FileNotFoundError as error:
            raise Failure("SourceNotFound", f"{self.uri} does not exist in {account.name}") from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise self._rejected(account, str(error)) from error
        except exceptions.PreconditionError as error:
            raise Failure("DigestMismatch", f"{self.uri} was changed while it was downloaded; try again") from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise self._other(account, str(error)) from error

    def _rejected(self, account: Account, text: str) -> Failure:
        if account.is_anonymous:
            advice = "name a Secret with credentials in spec.model.credentialsSecretRef"
            return Failure("CredentialsMissing", f"{account.name} does not let anybody read {self.uri} without an account; {advice}")
        return Failure("CredentialsRejected", f"{account.name} refuses the credentials for {self.uri}{_suffix(text)}")

    def _other(self, account: Account, text: str) -> Exception:
        if _REJECTED.search(text):
            return self._rejected(account, text)
        if _ABSENT.search(text) or ("404 Not Found" in text and not _CODE.search(text)):
            return Failure("SourceNotFound", f"{self.uri} does not exist at {account.name}{_suffix(text)}")
        cause = _CAUSES.search(text)
        if cause and not cause[1].lower().startswith(("invalid peer", "certificate")):
            return Broken(f"{account.name}: {cause[1]}")
        return Failure("SourceUnreachable", f"{self.uri} at {account.name}: {account.redacted(text)[:300]}")


def _suffix(text: str) -> str:
    found = _CODE.search(text)
    return f" ({found[1]})" if found else ""


def _head(store: ObjectStore, path: str) -> ObjectMeta:
    import obstore  # noqa: PLC0415

    return obstore.head(store, path)


def _listed(store: ObjectStore, prefix: str) -> list[ObjectMeta]:
    import obstore  # noqa: PLC0415

    found: list[ObjectMeta] = []
    for chunk in obstore.list(store, prefix or None, chunk_size=1000):
        found += chunk
        if len(found) > MAX_FILES:
            break  # refused where files are counted
    return found


def _append(store: ObjectStore, meta: ObjectMeta, transfer: Transfer) -> None:
    import obstore  # noqa: PLC0415

    options: dict[str, Any] = {"range": {"offset": transfer.size}} if transfer.size else {}
    if meta.get("e_tag"):
        options["if_match"] = meta["e_tag"]
    for chunk in obstore.get(store, meta["path"], options=options).stream(min_chunk_size=_CHUNK):  # type: ignore[arg-type]
        transfer.append(bytes(chunk))
