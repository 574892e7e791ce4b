"""What a webhook is told about a rollout, how the message is signed, and when it is sent again. Pure; `webhook` sends.

The signature is that of the open Standard Webhooks specification (standardwebhooks.com, spec 1.0.0), so that receivers find a verifying
library for their language; `verify` is the same in Python.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from slipway.api.conditions import format_time

SCHEMA = "slipway.dev/notification/v1"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
SECRET_PREFIX = "whsec_"  # noqa: S105 - the prefix that says: a secret follows
MIN_KEY = 24  # bytes, as the specification asks
TOLERANCE = 300  # seconds that a message may be old, against replay
ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
RETRIED = frozenset({408, 425, 429})

Moment = Literal["Started", "Step", "Paused", "Promoted", "RolledBack", "Aborted"]


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing that happened in a rollout.

    `uid` is the ModelDeployment's; `metrics` are rows of the status; `weight` is the canary's share after it, in percent.
    """

    moment: Moment
    time: datetime
    namespace: str
    name: str
    uid: str
    revision: str
    stable: str | None = None
    step: int | None = None
    weight: int | None = None
    reason: str | None = None
    message: str = ""
    metrics: tuple[Mapping[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """The same for the same happening, whoever sends it and how often: receivers drop what they have seen."""
        parts = (self.uid, self.revision, self.moment, str(self.step), format_time(self.time))
        return "msg_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def body(self) -> bytes:
        """Return the JSON that is sent and signed: keys in a fixed order, absent ones left out."""
        data = {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "revision": self.revision,
            "stable": self.stable,
            "step": self.step,
            "weight": self.weight,
            "reason": self.reason,
            "message": self.message or None,
            "metrics": [dict(metric) for metric in self.metrics] or None,
        }
        content = {
            "schema": SCHEMA,
            "id": self.id,
            "type": f"rollout.{self.moment}",
            "timestamp": format_time(self.time),
            "data": {key: value for key, value in data.items() if value is not None},
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def key_of(secret: str) -> bytes:
    """Return the key in a secret: `whsec_` and Base64, or any text of at least 24 bytes.

    Raises:
        ValueError: It is too short, or no Base64 after whsec_.
    """
    secret = secret.strip()
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True) if secret.startswith(SECRET_PREFIX) else secret.encode()
    except ValueError as error:
        raise ValueError(
            "the webhook's secret begins with whsec_ but no Base64 follows; make one with `openssl rand -base64 32`"
        ) from error
    if len(key) < MIN_KEY:
        raise ValueError(
            f"the webhook's secret has {len(key)} bytes, at least {MIN_KEY} are needed; make one with `openssl rand -base64 32`"
        )
    return key


def headers(message_id: str, body: bytes, key: bytes, now: float) -> dict[str, str]:
    """Return the headers of one attempt; `now` (Unix seconds) is signed as well, so that an old message cannot be sent again."""
    timestamp = str(int(now))
    return {
        "content-type": "application/json",
        ID: message_id,
        TIMESTAMP: timestamp,
        SIGNATURE: f"v1,{_sign(message_id, timestamp, body, key)}",
    }


def verify(received: Mapping[str, str], body: bytes, key: bytes, now: float) -> bool:
    """Say whether a message is genuine and fresh: what a receiver does. Header names in lower case; several signatures may be given."""
    message_id, timestamp = received.get(ID, ""), received.get(TIMESTAMP, "")
    if not (message_id and timestamp.isdecimal() and abs(now - int(timestamp)) <= TOLERANCE):
        return False
    expected = _sign(message_id, timestamp, body, key)
    given = [part.removeprefix("v1,") for part in received.get(SIGNATURE, "").split(" ") if part.startswith("v1,")]
    return any([hmac.compare_digest(expected.encode(), one.encode()) for one in given])


def retry_in(attempt: int, status: int | None, retry_after: str | None, now: datetime) -> float | None:
    """Return the seconds to wait before the next attempt, or None when there is none.

    Again: no answer at all (status None), 5xx, and 408, 425, 429. Every other answer is final: a receiver that refuses will refuse again.

    Args:
        attempt: how many were made, from 1.
        status: HTTP status of the last one, None without an answer.
        retry_after: its Retry-After, in seconds or as a date; longer waits than a minute are cut, shorter ones than ours lengthened.
        now: for a Retry-After that is a date.
    """
    if attempt >= ATTEMPTS or not (status is None or status >= 500 or status in RETRIED):
        return None
    wait: float = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempt - 1))
    return min(LONGEST_WAIT, max(wait, _seconds(retry_after, now)))


def _seconds(retry_after: str | None, now: datetime) -> float:
    if not retry_after:
        return 0.0
    try:
        asked = float(retry_after) if retry_after.strip().isdecimal() else (parsedate_to_datetime(retry_after) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return asked if math.isfinite(asked) else 0.0


def _sign(message_id: str, timestamp: str, body: bytes, key: bytes) -> str:
    signed = f"{message_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
