"""The keys that artifacts are signed and verified with, and the signatures: DSSE envelopes, as cosign makes and reads them.

Keys are EC P-256 in PEM, files of one mounted Secret. No network. The libraries take a third of a second to import: who may have
nothing to sign or verify imports this when it has.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error, UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from slipway_runtime.provenance import PAYLOAD_TYPE
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Signing

PRIVATE, PUBLIC = "private.pem", "public.pem"
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
_MAX_SIGNATURES = 16  # of one envelope; each costs a computation for each key


def public_keys(signing: Signing) -> tuple[SSlibKey, ...]:
    """Return the keys whose signatures count: one or, while keys are exchanged, several in one file.

    Raises:
        Failure: SigningKeyUnusable.
    """
    keys = tuple(_public_key(signing, pem) for pem in _PEM.findall(_read(signing, PUBLIC)))
    if not keys:
        raise _unusable(signing, f"its {PUBLIC} has no public key in PEM")
    return keys


def private_key(signing: Signing) -> CryptoSigner:
    """Return what signs; its other half is among the public keys, or nothing that it signs could be loaded.

    Raises:
        Failure: SigningKeyUnusable.
    """
    data = _read(signing, PRIVATE)
    try:
        private = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(signing, f"its {PRIVATE} is no private key in PEM without a password: {type(error).__name__}") from error
    if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(private.curve, SECP256R1):
        raise _unusable(signing, f"its {PRIVATE} is not a key of the curve P-256")
    public = _named(private.public_key())
    if public.keyid not in {key.keyid for key in public_keys(signing)}:
        raise _unusable(signing, f"its {PRIVATE} belongs to the key {public.keyid[:12]}…, which is not in its {PUBLIC}")
    return CryptoSigner(private, public)


def sign(payload: bytes, signer: CryptoSigner) -> bytes:
    """Return the envelope of a signed statement."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), separators=(",", ":")).encode()


def opened(data: bytes, keys: Sequence[SSlibKey]) -> tuple[bytes, str]:
    """Return the payload of an envelope, and the id of the key that signed it.

    Ids in the envelope are hints that nobody signed, so every key is tried: that of cosign is empty.

    Raises:
        ValueError: why not, as the end of a sentence.
    """
    try:
        value = json.loads(data)
        rows = [{"keyid": str(number), "sig": row["sig"]} for number, row in enumerate(value["signatures"])]
        envelope = Envelope.from_dict({**value, "signatures": rows[:_MAX_SIGNATURES]})
        signed = envelope.pae()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
        raise ValueError(f"its envelope is malformed ({type(error).__name__})") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ValueError(f"it signs a {envelope.payload_type!r}, not {PAYLOAD_TYPE}")
    for signature in envelope.signatures.values():
        for key in keys:
            if _is_by(key, signature.signature, signed):
                return envelope.payload, key.keyid
    raise ValueError(f"it is not signed by the key {' or '.join(f'{key.keyid[:12]}…' for key in keys)}")


def _is_by(key: SSlibKey, signature: str, signed: bytes) -> bool:
    try:
        key.verify_signature(Signature(key.keyid, signature), signed)
    except UnverifiedSignatureError:
        return False
    return True


def _public_key(signing: Signing, pem: bytes) -> SSlibKey:
    try:
        public = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(signing, f"its {PUBLIC} is no public key in PEM: {type(error).__name__}") from error
    if not isinstance(public, EllipticCurvePublicKey) or not isinstance(public.curve, SECP256R1):
        raise _unusable(signing, f"its {PUBLIC} is not a key of the curve P-256")
    return _named(public)


def _named(public: EllipticCurvePublicKey) -> SSlibKey:
    """Return a key under an id that openssl can tell as well: sha256 of its DER form."""
    return SSlibKey.from_crypto(public, hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest())


def _read(signing: Signing, name: str) -> bytes:
    path: Path = signing.folder / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(signing, f"it does not exist in this namespace or has no key {name}") from error


def _unusable(signing: Signing, why: str) -> Failure:
    return Failure("SigningKeyUnusable", f"signing is set to the Secret {signing.secret}, but {why}")
