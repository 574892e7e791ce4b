"""What the statement about an artifact says, and which statements count for it."""

from __future__ import annotations

import json

import pytest

from slipway_runtime.provenance import PREDICATE_TYPE, STATEMENT_TYPE, Build, check_statement, statement

DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
SPEC = {
    "model": {"uri": "oci://r:5000/m:v1", "entrypoint": "model:build", "credentialsSecretRef": {"name": "secret-of-the-source"}},
    "signature": {"inputs": [], "outputs": []},
    "conversion": {"validation": {"data": {"uri": "https://h/golden.npz?sig=token"}}, "calibration": {"uri": "pvc://c/d", "samples": 8}},
    "converterImage": "reg.example/slipway-runtime-torch:0.1.0",
    "signingSecret": "slipway-signing",
}
CONFIG = {
    "source": {"uri": "oci://r:5000/m:v1", "digest": f"sha256:{'c' * 64}"},
    "data": {"validation": f"sha256:{'d' * 64}", "calibration": f"sha256:{'e' * 64}"},
    "contentKey": "f" * 64,
    "tools": {"python": "3.11", "slipway-runtime": "0.1.0"},
    "choice": "ONNX is the best by Latency",
    "candidates": [{"target": "ONNX", "verdict": "Passed", "chosen": True}],
}


def said(spec=SPEC, config=CONFIG, started="2026-11-29T12:00:00Z"):
    return json.loads(statement("r:5000/artifacts/ml", DIGEST, OTHER, Build(spec, config, started, "2026-11-29T12:01:00Z")))


def test_the_whole_statement():
    assert said() == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "r:5000/artifacts/ml", "digest": {"sha256": "a" * 64}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://slipway.dev/conversion/v1",
                "externalParameters": {
                    "model": {"uri": "oci://r:5000/m:v1", "entrypoint": "model:build"},
                    "signature": SPEC["signature"],
                    "conversion": {
                        "validation": {"data": {"uri": "https://h/golden.npz"}},
                        "calibration": {"uri": "pvc://c/d", "samples": 8},
                    },
                },
                "internalParameters": {"contentKey": "f" * 64, "tools": CONFIG["tools"]},
                "resolvedDependencies": [
                    {"name": "source", "uri": "oci://r:5000/m:v1", "digest": {"sha256": "c" * 64}},
                    {"name": "calibration data", "uri": "pvc://c/d", "digest": {"sha256": "e" * 64}},
                    {"name": "validation data", "uri": "https://h/golden.npz", "digest": {"sha256": "d" * 64}},
                ],
            },
            "runDetails": {
                "builder": {"id": "oci://reg.example/slipway-runtime-torch:0.1.0", "version": {"slipway-runtime": "0.1.0"}},
                "metadata": {"startedOn": "2026-11-29T12:00:00Z", "finishedOn": "2026-11-29T12:01:00Z"},
                "byproducts": [
                    {
                        "name": "slipway.json",
                        "mediaType": "application/vnd.slipway.artifact.config.v1+json",
                        "digest": {"sha256": "b" * 64},
                        "annotations": {"choice": CONFIG["choice"], "candidates": CONFIG["candidates"]},
                    }
                ],
            },
        },
    }


def test_a_hub_s_commit_is_a_digest_too_and_the_start_may_be_unknown():
    source = {"uri": "hf://acme/digits@main", "digest": DIGEST, "revision": "0" * 40}
    predicate = said(SPEC | {"model": {"uri": source["uri"]}}, CONFIG | {"source": source, "data": {}}, None)["predicate"]
    (dependency,) = predicate["buildDefinition"]["resolvedDependencies"]
    assert dependency["digest"] == {"sha256": "a" * 64, "gitCommit": "0" * 40}
    assert predicate["runDetails"]["metadata"] == {"finishedOn": "2026-11-29T12:01:00Z"}


def test_nothing_of_a_signed_address_and_no_secret_is_told():
    uri = "https://h/m.tar.gz?X-Amz-Signature=token#part"
    text = json.dumps(said(SPEC | {"model": SPEC["model"] | {"uri": uri}}, CONFIG | {"source": {"uri": uri, "digest": DIGEST}}))
    assert "https://h/m.tar.gz" in text
    assert not [word for word in ("token", "#part", "secret-of-the-source", "slipway-signing") if word in text]


SUBJECT = {"name": "r", "digest": {"sha256": "a" * 64}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "no in-toto statement"),
        ({"predicateType": "https://cosign.sigstore.dev/attestation/vuln/v1"}, "vuln"),
        ({"subject": []}, "exactly one subject"),
        ({"subject": [SUBJECT, SUBJECT | {"digest": {"sha256": "b" * 64}}]}, "exactly one subject"),
        ({"subject": [SUBJECT | {"digest": {"sha256": "b" * 64}}]}, "about {'sha256': 'bbb"),
        ({"subject": [SUBJECT | {"digest": {"sha512": "a" * 64}}]}, "about {'sha512'"),
        ({"subject": ["a" * 64]}, "exactly one subject"),
        ({"subject": [{"name": "r"}]}, "about None"),
    ],
)
def test_which_statements_count(change, problem):
    payload = json.dumps({"_type": STATEMENT_TYPE, "predicateType": PREDICATE_TYPE, "subject": [SUBJECT], **change}).encode()
    if problem is None:
        check_statement(payload, DIGEST)
    else:
        with pytest.raises(ValueError, match=problem):
            check_statement(payload, DIGEST)


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"\xff", b'"x"'])
def test_what_is_no_statement(payload):
    with pytest.raises(ValueError, match=r"."):
        check_statement(payload, DIGEST)
