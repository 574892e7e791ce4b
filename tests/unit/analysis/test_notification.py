"""The body, the signature and the waits, as values."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from slipway.analysis.notification import ATTEMPTS, Notification, headers, key_of, retry_in, verify

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
KEY = key_of("a secret of enough bytes, as it seems")
STEP = Notification("Step", NOW, "default", "digits", "uid-1", "digits-5d41402a", stable="digits-0a", step=1, weight=50, message="passed")


def test_the_signature_is_that_of_the_specification() -> None:
    """The example in the documentation of the reference implementation."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = headers("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', key, 1614265330.7)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signed["webhook-timestamp"] == "1614265330"


def test_the_body_holds_what_happened_and_nothing_empty() -> None:
    body = json.loads(replace(STEP, metrics=({"name": "error-rate", "verdict": "Pass", "value": "0.001"},)).body())
    assert body == {
        "schema": "slipway.dev/notification/v1",
        "id": STEP.id,
        "type": "rollout.Step",
        "timestamp": "2026-01-31T12:00:00Z",
        "data": {
            "namespace": "default",
            "name": "digits",
            "uid": "uid-1",
            "revision": "digits-5d41402a",
            "stable": "digits-0a",
            "step": 1,
            "weight": 50,
            "message": "passed",
            "metrics": [{"name": "error-rate", "verdict": "Pass", "value": "0.001"}],
        },
    }
    assert json.loads(replace(STEP, step=0, weight=0).body())["data"]["weight"] == 0


def test_the_id_is_that_of_the_happening() -> None:
    assert replace(STEP, message="said otherwise", weight=51).id == STEP.id
    others = [
        replace(STEP, step=2),
        replace(STEP, moment="Promoted"),
        replace(STEP, revision="digits-b"),
        replace(STEP, uid="uid-2"),
        replace(STEP, time=NOW + timedelta(seconds=1)),
    ]
    assert len({STEP.id, *(other.id for other in others)}) == 6


@pytest.mark.parametrize(
    ("change", "later", "want"),
    [
        ({}, 0, True),
        ({}, 299, True),
        ({}, 301, False),  # replayed
        ({}, -301, False),  # from the future
        ({"webhook-id": "msg_other"}, 0, False),
        ({"webhook-timestamp": "1769860801"}, 0, False),
        ({"webhook-timestamp": "soon"}, 0, False),
        ({"webhook-signature": ""}, 0, False),
        ({"webhook-signature": "v1,AAAA"}, 0, False),
        ({"webhook-signature": "v1,ä"}, 0, False),
    ],
)
def test_verify(change: dict[str, str], later: float, want: bool) -> None:
    now, body = NOW.timestamp(), STEP.body()
    signed = headers(STEP.id, body, KEY, now)
    assert verify(signed | change, body, KEY, now + later) is want


def test_verify_sees_a_changed_body_and_another_key_and_takes_one_of_several_signatures() -> None:
    now, body = NOW.timestamp(), STEP.body()
    signed = headers(STEP.id, body, KEY, now)
    assert not verify(signed, body.replace(b"50", b"51"), KEY, now)
    assert not verify(signed, body, key_of("another secret of enough bytes, yes"), now)
    assert verify(signed | {"webhook-signature": f"v1,AAAA v2,x {signed['webhook-signature']}"}, body, KEY, now)


@pytest.mark.parametrize("secret", ["", "short", "whsec_AAAA", "whsec_not base64, that much is sure"])
def test_weak_secrets_are_refused(secret: str) -> None:
    with pytest.raises(ValueError, match="openssl rand"):
        key_of(secret)


@pytest.mark.parametrize(
    ("attempt", "status", "retry_after", "want"),
    [
        (1, None, None, 1.0),
        (2, 500, None, 2.0),
        (5, 503, None, 16.0),
        (ATTEMPTS, 503, None, None),
        (1, 429, "7", 7.0),
        (1, 503, "3600", 60.0),
        (4, 503, "1", 8.0),
        (1, 503, "Sat, 31 Jan 2026 12:00:30 GMT", 30.0),
        (1, 503, "Sat, 31 Jan 2026 11:00:00 GMT", 1.0),
        (1, 503, "soon", 1.0),
        (1, 503, "-5", 1.0),
        (1, 408, None, 1.0),
        (1, 302, None, None),
        (1, 400, None, None),
        (1, 401, "5", None),
        (1, 410, None, None),
    ],
)
def test_retry(attempt: int, status: int | None, retry_after: str | None, want: float | None) -> None:
    assert retry_in(attempt, status, retry_after, NOW) == want
