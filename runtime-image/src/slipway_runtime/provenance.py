"""Where an artifact comes from, as an in-toto statement with SLSA's provenance. Pure: neither network nor keys.

What is said is what `publish` knows: the spec, the digests that `fetch` found, the tools, and how each candidate did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from slipway_runtime.artifact import CONFIG_NAME, CONFIG_TYPE
from slipway_runtime.content_key import canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "https://slipway.dev/conversion/v1"
_PARAMETERS = ("model", "signature", "conversion", "accelerator", "maxBatchSize")


@dataclass(frozen=True, slots=True)
class Build:
    """One conversion.

    Attributes:
        spec: ModelArtifact.spec.
        config: slipway.json.
        started: when fetch began, RFC 3339 in UTC; None when that is not known.
        finished: when the artifact was published.
    """

    spec: Mapping[str, Any]
    config: Mapping[str, Any]
    started: str | None
    finished: str

    @property
    def config_bytes(self) -> bytes:
        """slipway.json as it is published."""
        return canonical_json(self.config)


def statement(repository: str, digest: str, config_digest: str, build: Build) -> bytes:
    """Return the statement about the artifact `digest` in `repository`; both digests are `sha256:…`."""
    value = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": repository, "digest": _digest_set(digest)}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _external(build.spec),
                "internalParameters": {"contentKey": build.config["contentKey"], "tools": build.config["tools"]},
                "resolvedDependencies": list(_dependencies(build)),
            },
            "runDetails": {
                "builder": _builder(build),
                "metadata": ({"startedOn": build.started} if build.started else {}) | {"finishedOn": build.finished},
                "byproducts": [
                    {
                        "name": CONFIG_NAME,
                        "mediaType": CONFIG_TYPE,
                        "digest": _digest_set(config_digest),
                        "annotations": {"choice": build.config.get("choice", ""), "candidates": build.config["candidates"]},
                    }
                ],
            },
        },
    }
    return canonical_json(value)


def check_statement(payload: bytes, digest: str) -> None:
    """Check that a statement is provenance of this artifact and of no other.

    Raises:
        ValueError: what it is instead, as the end of a sentence.
    """
    value = json.loads(payload)
    if not isinstance(value, dict) or value.get("_type") != STATEMENT_TYPE:
        raise ValueError("it signs something that is no in-toto statement")
    if value.get("predicateType") != PREDICATE_TYPE:
        raise ValueError(f"it signs {value.get('predicateType')!r}, not {PREDICATE_TYPE}")
    subjects = value.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise ValueError("its statement has not exactly one subject")
    if subjects[0].get("digest") != _digest_set(digest):
        raise ValueError(f"its statement is about {subjects[0].get('digest')}")


def _external(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _told(spec[key]) for key in _PARAMETERS if spec.get(key)}


def _told(value: Any) -> Any:
    """Return a part of the spec without names of Secrets, and with addresses as `_public` has them."""
    if isinstance(value, Mapping):
        told = {key: _told(item) for key, item in value.items() if key != "credentialsSecretRef"}
        return told | ({"uri": _public(value["uri"])} if isinstance(value.get("uri"), str) else {})
    return [_told(item) for item in value] if isinstance(value, list) else value


def _builder(build: Build) -> dict[str, Any]:
    image, version = build.spec.get("converterImage"), build.config["tools"].get("slipway-runtime")
    return {"id": f"oci://{image}" if image else BUILD_TYPE} | ({"version": {"slipway-runtime": version}} if version else {})


def _dependencies(build: Build) -> Iterator[dict[str, Any]]:
    source = build.config["source"]
    commit = {"gitCommit": source["revision"]} if "revision" in source else {}
    yield {"name": "source", "uri": _public(source["uri"]), "digest": _digest_set(source["digest"]) | commit}
    conversion = build.spec.get("conversion") or {}
    uris = {"validation": (conversion.get("validation") or {}).get("data"), "calibration": conversion.get("calibration")}
    for name, digest in sorted((build.config.get("data") or {}).items()):
        uri = (uris.get(name) or {}).get("uri")
        yield {"name": f"{name} data", **({"uri": _public(uri)} if uri else {}), "digest": _digest_set(digest)}


def _public(uri: str) -> str:
    """Return a URI without what may be a token: the query and the fragment of a signed address."""
    parts = urlsplit(uri)
    return parts._replace(query="", fragment="").geturl() if parts.scheme in ("http", "https") else uri


def _digest_set(digest: str) -> dict[str, str]:
    algorithm, _, value = digest.partition(":")
    return {algorithm: value}
