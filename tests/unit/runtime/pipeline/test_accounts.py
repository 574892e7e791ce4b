"""What is read from the user's Secret for each object store, and that no message holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slipway_runtime.fetch.accounts import Account, azure, google, s3
from slipway_runtime.fetch.base import Fetched, Source
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Settings

CONNECTION = "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=a2V5PQ==;EndpointSuffix=core.windows.net"
SERVICE = json.dumps({"client_email": "a@b", "private_key": "PRIVATE", "private_key_id": "1"})


class Plain(Source):
    def fetch(self, folder: Path) -> Fetched:
        raise NotImplementedError


@pytest.fixture
def source(tmp_path):
    def make(uri: str = "s3://models/m", **keys: str) -> Source:
        for name, value in keys.items():
            (tmp_path / name).write_text(value + "\n")
        nothing = Path("/nonexistent")
        return Plain(uri, Settings({"model": {"uri": uri}}, "r", (), 1.0, 1, nothing, nothing, tmp_path, nothing))

    return make


S3 = {"AWS_ACCESS_KEY_ID": "key1", "AWS_SECRET_ACCESS_KEY": "hush"}


@pytest.mark.parametrize(
    ("keys", "config", "name"),
    [
        ({}, {"region": "us-east-1", "skip_signature": True}, "https://s3.us-east-1.amazonaws.com"),
        (S3, {"region": "us-east-1", "access_key_id": "key1", "secret_access_key": "hush"}, "https://s3.us-east-1.amazonaws.com"),
        (
            {"AWS_ENDPOINT_URL": "https://minio:9000/", "AWS_REGION": "eu"},
            {"region": "eu", "skip_signature": True, "endpoint": "https://minio:9000"},
            "https://minio:9000",
        ),
        (
            {"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"},
            {"region": "us-east-1", "skip_signature": True, "endpoint": "http://minio:9000"},
            "http://minio:9000",
        ),
        (S3 | {"awsAnonymousCredential": "true"}, {"region": "us-east-1", "skip_signature": True}, "https://s3.us-east-1.amazonaws.com"),
    ],
)
def test_s3(source, keys, config, name):
    account = s3(source(**keys), "models")
    assert (account.config, account.name, account.is_anonymous) == (config, name, "skip_signature" in config)


@pytest.mark.parametrize(
    ("keys", "config"),
    [
        (
            {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION},
            {"account_name": "acme", "endpoint": "https://acme.blob.core.windows.net", "account_key": "a2V5PQ=="},
        ),
        (
            {"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://acme.blob.example/;SharedAccessSignature=sv=1&sig=abc%3D"},
            {"account_name": "acme", "endpoint": "https://acme.blob.example", "sas_key": "sv=1&sig=abc%3D"},
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "acme", "AZURE_STORAGE_ACCESS_KEY": "a2V5"},
            {"account_name": "acme", "endpoint": "https://acme.blob.core.windows.net", "account_key": "a2V5"},
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "acme", "AZ_CLIENT_ID": "i", "AZ_CLIENT_SECRET": "secr", "AZ_TENANT_ID": "t"},
            {
                "account_name": "acme",
                "endpoint": "https://acme.blob.core.windows.net",
                "client_id": "i",
                "client_secret": "secr",
                "tenant_id": "t",
            },
        ),
        (
            {"AZURE_STORAGE_ACCOUNT": "acme"},
            {"account_name": "acme", "endpoint": "https://acme.blob.core.windows.net", "skip_signature": True},
        ),
    ],
)
def test_azure(source, keys, config):
    assert azure(source("az://models/m", **keys), "models").config == config


@pytest.mark.parametrize(
    ("read", "keys", "words"),
    [
        (s3, {"AWS_SECRET_ACCESS_KEY": "x"}, "AWS_ACCESS_KEY_ID in the Secret"),
        (google, {"other": "x"}, "JSON of a service account"),
        (azure, {}, "there is no Secret"),
        (azure, {"AZURE_STORAGE_KEY": "x"}, "its keys: AZURE_STORAGE_KEY"),
        (azure, {"AZURE_STORAGE_ACCOUNT": "a", "AZURE_CLIENT_ID": "x"}, "AZURE_CLIENT_SECRET, AZURE_TENANT_ID"),
    ],
)
def test_what_is_missing_is_named(source, read, keys, words):
    with pytest.raises(Failure, match="CredentialsMissing") as caught:
        read(source(**keys), "models")
    assert words in caught.value.message


def test_google(source):
    account = google(source("gs://models/m", **{"any.json": SERVICE}), "models")
    assert (account.config, account.secrets) == ({"service_account_key": SERVICE}, ("PRIVATE",))


def test_messages_hold_no_secret():
    account = Account("S3Store", "b", "https://x", {"secret_access_key": "a/b+c="}, ("a/b+c=", "hush"))
    text = "GET https://x/b?X-Amz-Signature=123&sig=hush failed: a/b+c= and a%2Fb%2Bc%3D (see https://x/b)"
    assert account.redacted(text) == "GET https://x/b failed: … and … (see https://x/b)"
    assert "hush" not in repr(Account("S3Store", "b", "https://x", {}, ("hush",)))
