"""The keys of the user's Secret for each kind of object store, and the client made of them.

The names are those of the vendors' own tools and of KServe, so that a Secret that works there works here. Endpoint and region stand in
the Secret too, not in the URI: the same URI with another Secret is the same model at another store. Without a Secret a source is read
without an account; the metadata service of a node is never asked, since a model must not get the node's own rights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from slipway_runtime.fetch.base import Source
from slipway_runtime.reasons import Failure

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_TIMEOUTS = {"connect_timeout": "10 seconds", "read_timeout": "60 seconds", "timeout": "1 day"}
_FALSE = ("0", "false", "no")


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks which store.

    Attributes:
        kind: class of obstore.store: S3Store, GCSStore or AzureStore.
        container: bucket or container.
        name: of the store, for messages.
        config: for the class.
        secrets: values that no message may show.
        is_anonymous: no credentials are sent.
        certificate: of a private authority, PEM, or None.
    """

    kind: str
    container: str
    name: str
    config: Mapping[str, Any] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    is_anonymous: bool = False
    certificate: str | None = None

    def store(self) -> ObjectStore:
        """Return the client; raises Failure CredentialsRejected when the store's library cannot read the credentials."""
        from obstore import exceptions, store  # noqa: PLC0415 - not in the ONNX-only image

        options: dict[str, Any] = {**_TIMEOUTS, "allow_http": self.name.startswith("http://")}
        if self.certificate:
            options["root_certificate"] = self.certificate
        retries = {"max_retries": 2, "retry_timeout": timedelta(seconds=20), "backoff": {"init_backoff": timedelta(seconds=0.2)}}
        try:
            return getattr(store, self.kind)(  # type: ignore[no-any-return]
                self.container, config=dict(self.config), client_options=options, retry_config=retries
            )
        except (exceptions.BaseError, ValueError) as error:
            text = self.redacted(str(error))[:200]
            raise Failure("CredentialsRejected", f"the Secret's values for {self.name} cannot be used: {text}") from error

    def redacted(self, text: str) -> str:
        """Return the first part of a client's text without secrets, plain or as a URL has them, and without signed queries."""
        text = " ".join(text.partition("Debug source:")[0].split())
        for secret in self.secrets:
            for form in (secret, quote(secret, safe="")):
                text = text.replace(form, "…")
        return re.sub(r"(https?://[^\s?\"')]+)\?[^\s\"')]*", r"\1", text)


def s3(source: Source, bucket: str) -> Account:
    """Read `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ENDPOINT_URL`, `AWS_REGION`, `ca.crt`.

    KServe's `S3_ENDPOINT` with `S3_USE_HTTPS`, `awsAnonymousCredential` and `AWS_DEFAULT_REGION` are understood as well.

    Raises:
        Failure: CredentialsMissing when one half of a key pair is absent.
    """
    key = source.secret("AWS_ACCESS_KEY_ID", "awsAccessKeyID")
    secret = source.secret("AWS_SECRET_ACCESS_KEY", "awsSecretAccessKey")
    token = source.secret("AWS_SESSION_TOKEN")
    if bool(key) != bool(secret):
        raise _missing(source, "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID")
    config: dict[str, Any] = {"region": source.secret("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1"}
    anonymous = not key or _is_true(source.secret("AWS_ANONYMOUS_CREDENTIAL", "awsAnonymousCredential"))
    if anonymous:
        config["skip_signature"] = True
    else:
        config |= {"access_key_id": key, "secret_access_key": secret} | ({"session_token": token} if token else {})
    endpoint = _s3_endpoint(source)
    if endpoint:
        config["endpoint"] = endpoint
    name = endpoint or f"https://s3.{config['region']}.amazonaws.com"
    return Account("S3Store", bucket, name, config, _known(key, secret, token), anonymous, source.secret("ca.crt"))


def _s3_endpoint(source: Source) -> str | None:
    endpoint = source.secret("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT")
    if endpoint and "://" not in endpoint:
        plain = (source.secret("S3_USE_HTTPS") or "1").lower() in _FALSE
        endpoint = f"{'http' if plain else 'https'}://{endpoint}"
    return endpoint.rstrip("/") if endpoint else None


def google(source: Source, bucket: str) -> Account:
    """Read the JSON of a service account: `gcloud-application-credentials.json` (KServe's name) or the one key that ends in .json.

    `STORAGE_EMULATOR_HOST` is the endpoint of another store that speaks the protocol.

    Raises:
        Failure: CredentialsMissing when the Secret has no such key; CredentialsRejected when it is not a service account.
    """
    keys = [key for key in source.secret_keys() if key.endswith(".json")]
    endpoint = (source.secret("STORAGE_EMULATOR_HOST", "GCS_ENDPOINT") or "").rstrip("/")
    if endpoint and "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    if source.secret_keys() and not keys and not endpoint:
        raise _missing(source, "gcloud-application-credentials.json (the JSON of a service account)")
    text = source.secret("gcloud-application-credentials.json", *keys)
    config: dict[str, Any] = {"base_url": endpoint} if endpoint else {}
    private = _service_account(text) if text else None
    config |= {"service_account_key": text} if text else {"skip_signature": True}
    name = endpoint or "https://storage.googleapis.com"
    return Account("GCSStore", bucket, name, config, _known(private), text is None, source.secret("ca.crt"))


def _service_account(text: str) -> str:
    try:
        value = json.loads(text)
        return str(value["private_key"])
    except (ValueError, KeyError, TypeError) as error:
        advice = "it needs client_email and private_key"
        raise Failure("CredentialsRejected", f"the Secret's JSON is not the key of a service account; {advice}") from error


def azure(source: Source, container: str) -> Account:
    """Read `AZURE_STORAGE_CONNECTION_STRING`, or an account and a key, a SAS token or an application.

    The account is `AZURE_STORAGE_ACCOUNT`; then one of `AZURE_STORAGE_KEY` (or KServe's `AZURE_STORAGE_ACCESS_KEY`),
    `AZURE_STORAGE_SAS_TOKEN`, or `AZURE_CLIENT_ID`, `AZURE_CLIENT_SECRET` and `AZURE_TENANT_ID` (KServe's `AZ_…` too); without any of them
    the container must be public. `AZURE_STORAGE_BLOB_ENDPOINT` is another endpoint.

    Raises:
        Failure: CredentialsMissing when the account, or a part of the application's credentials, is absent.
    """
    parts = _connection_string(source.secret("AZURE_STORAGE_CONNECTION_STRING") or "")
    account = parts.get("AccountName") or source.secret("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    endpoint = parts.get("BlobEndpoint") or source.secret("AZURE_STORAGE_BLOB_ENDPOINT") or _default_endpoint(account, parts)
    if account is None and parts.get("BlobEndpoint"):
        account = re.split("[./]", parts["BlobEndpoint"].partition("://")[2])[0]
    if account is None or endpoint is None:
        raise _missing(source, "AZURE_STORAGE_ACCOUNT or AZURE_STORAGE_CONNECTION_STRING")
    key = parts.get("AccountKey") or source.secret("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY")
    token = (parts.get("SharedAccessSignature") or source.secret("AZURE_STORAGE_SAS_TOKEN") or "").lstrip("?") or None
    application = _application(source) if not key and not token else {}
    config: dict[str, Any] = {"account_name": account, "endpoint": endpoint.rstrip("/"), **application}
    if key:
        config["account_key"] = key
    elif token:
        config["sas_key"] = token
    anonymous = not (key or token or application)
    if anonymous:
        config["skip_signature"] = True
    secrets = _known(key, token, application.get("client_secret"), *_signatures(token))
    return Account("AzureStore", container, config["endpoint"], config, secrets, anonymous, source.secret("ca.crt"))


def _connection_string(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in text.split(";")) if name.strip()}


def _default_endpoint(account: str | None, parts: Mapping[str, str]) -> str | None:
    protocol, suffix = parts.get("DefaultEndpointsProtocol", "https"), parts.get("EndpointSuffix", "core.windows.net")
    return f"{protocol}://{account}.blob.{suffix}" if account else None


def _application(source: Source) -> dict[str, str]:
    names = {"client_id": "CLIENT_ID", "client_secret": "CLIENT_SECRET", "tenant_id": "TENANT_ID"}
    found = {field: source.secret(f"AZURE_{name}", f"AZ_{name}") for field, name in names.items()}
    present = {field: value for field, value in found.items() if value}
    if present and len(present) < len(names):
        raise _missing(source, ", ".join(f"AZURE_{names[field]}" for field in names if field not in present))
    return present


def _signatures(token: str | None) -> list[str]:
    return re.findall(r"sig=([^&]+)", token or "")


def _missing(source: Source, wanted: str) -> Failure:
    have = ", ".join(source.secret_keys()) or "there is no Secret"
    scheme = source.uri.partition("://")[0]
    return Failure("CredentialsMissing", f"{scheme}:// needs {wanted} in the Secret of credentialsSecretRef; its keys: {have}")


def _known(*values: str | None) -> tuple[str, ...]:
    return tuple(value for value in values if value and len(value) > 3)


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() not in _FALSE
