"""Statements about artifacts in the registry: beside the artifact that they are about, where cosign and referrers' readers look for them.

One manifest whose `subject` is the artifact, under cosign's tag. A tag proves nothing, so a reader checks signature and subject.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from slipway_runtime.artifact import ARTIFACT_TYPE, MANIFEST_TYPE
from slipway_runtime.content_key import canonical_json
from slipway_runtime.oci import ARTIFACTS, Client, Manifest
from slipway_runtime.provenance import PAYLOAD_TYPE, PREDICATE_TYPE, check_statement
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Signing

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey

ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"
EMPTY_TYPE, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_MAX_LAYERS = 16  # statements that are looked at
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Proof:
    """A statement whose signature was checked.

    Attributes:
        envelope: the bytes that hold it and its signature.
        signed_by: id of the key.
    """

    envelope: bytes
    signed_by: str


def tag_of(digest: str) -> str:
    """Return cosign's tag for the statements about an artifact."""
    return f"{_referrers_tag(digest)}.att"


def attach(client: Client, artifact: Manifest, data: bytes, *, is_signed: bool) -> None:
    """Attach a statement, or its envelope, to an artifact that may be pushed later: who finds the artifact finds this.

    Args:
        client: the repository of the artifact.
        artifact: its manifest.
        data: the statement, in an envelope when `is_signed`.
        is_signed: which of the two.
    """
    kind = ENVELOPE_TYPE if is_signed else PAYLOAD_TYPE
    notes = {"predicateType": PREDICATE_TYPE, "in-toto.io/predicate-type": PREDICATE_TYPE}
    layer = _pushed(client, kind, data) | {"annotations": notes | ({"dev.cosignproject.cosign/signature": ""} if is_signed else {})}
    manifest = canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": kind,
            "config": _pushed(client, EMPTY_TYPE, EMPTY),
            "layers": [layer],
            "subject": {"mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE, "digest": artifact.digest, "size": len(artifact.data)},
        }
    )
    own, is_listed = client.put_referrer(manifest, tag_of(artifact.digest))
    if is_listed:
        return
    # a registry without the referrers API: OCI's list of them is an index under a tag, kept by who pushes
    tag = _referrers_tag(artifact.digest)
    row = {"mediaType": MANIFEST_TYPE, "artifactType": kind, "digest": own, "size": len(manifest), "annotations": notes}
    client.put_index([*(other for other in client.find_index(tag) if other.get("digest") != own), row], tag)


def is_attested(client: Client, digest: str) -> bool:
    """Say whether there is a statement about an artifact, signed or not; nothing of it is checked."""
    return _read(client.find_manifest, tag_of(digest), []) is not None


def verified(client: Client, digest: str, signing: Signing) -> Proof:
    """Return the proof that an artifact was made by who has the key.

    Raises:
        Failure: ProvenanceUnverified, SigningKeyUnusable, RegistryUnavailable, RegistryRejected.
    """
    from slipway_runtime.signing import public_keys  # noqa: PLC0415 - see there

    keys, problems = public_keys(signing), list[str]()
    for envelope in _envelopes(client, digest, problems):
        try:
            return checked(envelope, digest, keys)
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        raise Failure("ProvenanceUnverified", f"nothing in the registry that is signed says where the artifact {digest} comes from")
    why = "; ".join(dict.fromkeys(problems))
    raise Failure("ProvenanceUnverified", f"what the registry has about the artifact {digest} does not count: {why}")


def checked(envelope: bytes, digest: str, keys: Sequence[SSlibKey]) -> Proof:
    """Check one envelope: who signed it, and that it is about this artifact.

    Raises:
        ValueError: why it does not count.
    """
    from slipway_runtime.signing import opened  # noqa: PLC0415

    payload, signed_by = opened(envelope, keys)
    check_statement(payload, digest)
    return Proof(envelope, signed_by)


def _envelopes(client: Client, digest: str, problems: list[str]) -> Iterator[bytes]:
    manifest = _read(client.find_manifest, tag_of(digest), problems)
    rows = [row for row in manifest.value["layers"] if isinstance(row, dict)] if manifest is not None else []
    wanted = [str(row.get("digest")) for row in rows if row.get("mediaType") == ENVELOPE_TYPE]
    for name in wanted[:_MAX_LAYERS]:
        data = _read(client.blob, name, problems) if _SHA256.fullmatch(name) else None
        if data is not None:
            yield data


def _read(get: Callable[[str], T | None], name: str, problems: list[str]) -> T | None:
    """Return what is there; that somebody put nonsense there is a problem of the statement, and no failure of the registry."""
    try:
        return get(name)
    except Failure as failure:
        if failure.reason not in (ARTIFACTS.corrupt, ARTIFACTS.missing):
            raise
        problems.append(failure.message)
        return None


def _pushed(client: Client, kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": client.push_blob(data), "size": len(data)}


def _referrers_tag(digest: str) -> str:
    return digest.replace(":", "-")
