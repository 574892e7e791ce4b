"""Keys as openssl makes them, and envelopes: whose signature counts, and what is wrong with the others."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest

from keys import CURVE, make_keys, openssl
from slipway_runtime.provenance import PAYLOAD_TYPE
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Signing, signing_from_environment
from slipway_runtime.signing import opened, private_key, public_keys, sign

PAYLOAD = b'{"_type": "statement"}'


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Signing("slipway-signing", make_keys(tmp_path_factory.mktemp("keys")))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return Signing("slipway-signing", make_keys(tmp_path_factory.mktemp("others")))


def test_signed_and_opened_under_an_id_that_openssl_tells(keys):
    payload, signed_by = opened(sign(PAYLOAD, private_key(keys)), public_keys(keys))
    assert payload == PAYLOAD
    der = openssl("pkey", "-pubin", "-in", str(keys.folder / "public.pem"), "-outform", "DER")
    assert signed_by == hashlib.sha256(der).hexdigest()


def test_openssl_agrees_about_the_bytes_that_are_signed(keys, tmp_path):
    envelope = json.loads(sign(PAYLOAD, private_key(keys)))
    assert envelope["payloadType"] == PAYLOAD_TYPE
    payload = base64.b64decode(envelope["payload"])
    signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    arguments = ("dgst", "-sha256", "-verify", str(keys.folder / "public.pem"), "-signature", str(tmp_path / "signature"))
    assert openssl(*arguments, data=signed).strip() == b"Verified OK"


def test_a_pkcs8_key_signs_as_well(keys, tmp_path):
    make_keys(tmp_path, ("pkcs8", "-topk8", "-nocrypt", "-in", str(keys.folder / "private.pem")))
    assert opened(sign(PAYLOAD, private_key(Signing("s", tmp_path))), public_keys(keys))[0] == PAYLOAD


def test_while_keys_are_exchanged_both_count_and_the_new_one_signs(keys, others, tmp_path):
    (tmp_path / "private.pem").write_bytes((others.folder / "private.pem").read_bytes())
    (tmp_path / "public.pem").write_bytes((others.folder / "public.pem").read_bytes() + (keys.folder / "public.pem").read_bytes())
    both = Signing("s", tmp_path)
    old, new = sign(PAYLOAD, private_key(keys)), sign(PAYLOAD, private_key(both))
    assert {opened(old, public_keys(both))[1], opened(new, public_keys(both))[1]} == {key.keyid for key in public_keys(both)}
    with pytest.raises(ValueError, match="not signed by the key"):
        opened(new, public_keys(keys))


def changed(envelope, change):
    return json.dumps(json.loads(envelope) | change).encode()


ROWS = {
    "as signed": ({}, None),
    "id of cosign": ("", None),
    "id of somebody else": ("0" * 64, None),
    "payload": ({"payload": base64.b64encode(PAYLOAD + b" ").decode()}, "not signed by the key"),
    "payload type": ({"payloadType": "text/plain"}, "'text/plain', not application/vnd.in-toto"),
    "no signature": ({"signatures": []}, "not signed by the key"),
    "no signatures": ({"signatures": None}, "malformed"),
    "a signature of nothing": ({"signatures": [{"sig": ""}]}, "not signed by the key"),
    "a signature that is no base64": ({"signatures": [{"sig": "ü"}]}, "malformed"),
    "a payload that is no text": ({"payload": 5}, "malformed"),
    "too many signatures": ({"signatures": [{"sig": "AAAA"}] * 99}, "not signed by the key"),
}


@pytest.mark.parametrize(("change", "problem"), ROWS.values(), ids=ROWS)
def test_which_envelopes_count(keys, change, problem):
    envelope = sign(PAYLOAD, private_key(keys))
    if isinstance(change, str):
        change = {"signatures": [json.loads(envelope)["signatures"][0] | {"keyid": change}]}
    if problem is None:
        assert opened(changed(envelope, change), public_keys(keys))[0] == PAYLOAD
    else:
        with pytest.raises(ValueError, match=problem):
            opened(changed(envelope, change), public_keys(keys))


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_envelope(keys, data):
    with pytest.raises(ValueError, match="malformed"):
        opened(data, public_keys(keys))


def test_one_good_signature_among_others_is_enough(keys, others):
    ours, theirs = (json.loads(sign(PAYLOAD, private_key(pair)))["signatures"][0] for pair in (keys, others))
    envelope = changed(sign(PAYLOAD, private_key(keys)), {"signatures": [theirs, ours]})
    assert opened(envelope, public_keys(keys))[0] == PAYLOAD


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "does not exist in this namespace or has no key private.pem"),
        ({"private.pem": b""}, "no private key in PEM"),
        ({"private.pem": b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"}, "no private key in PEM without a password"),
        ({"private.pem": (*CURVE, "secp384r1")}, "not a key of the curve P-256"),
        ({"private.pem": ("genpkey", "-algorithm", "ed25519")}, "not a key of the curve P-256"),
        ({"private.pem": (*CURVE, "prime256v1")}, "has no key public.pem"),
        ({"private.pem": (*CURVE, "prime256v1"), "public.pem": b"nothing"}, "its public.pem has no public key in PEM"),
        (
            {"private.pem": (*CURVE, "prime256v1"), "public.pem": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"},
            "its public.pem is no public key in PEM",
        ),
    ],
)
def test_keys_that_cannot_be_used(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else openssl(*content))
    with pytest.raises(Failure, match=words) as caught:
        private_key(Signing("slipway-signing", tmp_path))
    assert caught.value.reason == "SigningKeyUnusable"
    assert "the Secret slipway-signing" in caught.value.message
    assert "BEGIN" not in caught.value.message


def test_two_keys_that_do_not_belong_together(keys, others, tmp_path):
    (tmp_path / "private.pem").write_bytes((keys.folder / "private.pem").read_bytes())
    (tmp_path / "public.pem").write_bytes((others.folder / "public.pem").read_bytes())
    with pytest.raises(Failure, match=r"which is not in its public\.pem"):
        private_key(Signing("s", tmp_path))


@pytest.mark.parametrize(("secret", "is_on"), [(None, False), ("", False), ("slipway-signing", True)])
def test_signing_is_on_when_a_secret_is_named_whether_or_not_it_is_there(secret, is_on):
    found = signing_from_environment({} if secret is None else {"SLIPWAY_SIGNING_SECRET": secret})
    assert (found is not None) == is_on
