"""Conditions and reasons."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from slipway.api.conditions import blocking_message, get_condition, is_true, remove_condition, set_condition
from slipway.api.reasons import REASONS, Reason, reason_for_exit_code

NOON = datetime(2026, 1, 31, 12, 0, 0, 999999, tzinfo=UTC)
CONTRACT = Path(__file__).parents[3] / "docs/design/0001-interfaces.md"


def ready(conditions: list[dict[str, Any]], *, status: bool | None = True, message: str = "", now: datetime = NOON) -> list[dict[str, Any]]:
    return set_condition(conditions, type="Ready", status=status, reason=Reason.READY, message=message, generation=3, now=now)


def test_a_condition_has_all_fields() -> None:
    assert ready([], message="ok") == [
        {
            "type": "Ready",
            "status": "True",
            "observedGeneration": 3,
            "lastTransitionTime": "2026-01-31T12:00:00Z",
            "reason": "Ready",
            "message": "ok",
        }
    ]


def test_time_moves_only_with_the_status() -> None:
    later = NOON + timedelta(hours=1)
    same = ready(ready([]), message="new words", now=later)
    assert (same[0]["lastTransitionTime"], same[0]["message"]) == ("2026-01-31T12:00:00Z", "new words")
    assert ready(same, status=None, now=later)[0]["lastTransitionTime"] == "2026-01-31T13:00:00Z"


def test_time_is_utc() -> None:
    assert ready([], now=NOON.astimezone(timezone(timedelta(hours=5))))[0]["lastTransitionTime"] == "2026-01-31T12:00:00Z"


def test_order_is_stable_and_strangers_come_last() -> None:
    conditions: list[dict[str, Any]] = [{"type": "Other", "status": "True"}]
    for kind in ("Stalled", "Degraded", "Available", "Ready", "Progressing", "ArtifactReady", "Reconciling"):
        conditions = set_condition(conditions, type=kind, status=False, reason=Reason.PENDING, message="", generation=1, now=NOON)
    order = ["Ready", "ArtifactReady", "Available", "Progressing", "Degraded", "Reconciling", "Stalled", "Other"]
    assert [condition["type"] for condition in conditions] == order


def test_input_is_not_changed() -> None:
    before = ready([])
    ready(before, status=False)
    assert before[0]["status"] == "True"


def test_lookup_and_removal() -> None:
    conditions = ready([])
    assert is_true(conditions, "Ready")
    assert not is_true(conditions, "Stalled")
    assert get_condition(conditions, "Stalled") is None
    assert remove_condition(conditions, "Ready") == []


def test_a_long_message_is_cut_but_not_its_advice() -> None:
    assert len(ready([], message="x" * 5000)[0]["message"]) == 1024
    message = blocking_message(Reason.PARITY_FAILED, "x" * 5000)
    assert len(message) == 1024
    assert message.endswith(f" Next: {REASONS[Reason.PARITY_FAILED].fix}")
    assert blocking_message(Reason.PENDING, "waiting") == "waiting"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_documented(reason: Reason) -> None:
    doc = REASONS[reason]
    assert doc.meaning.endswith(".")
    assert doc.cause.endswith(".")
    assert doc.fix == "" or doc.fix.endswith(".")
    assert re.fullmatch(r"([A-Z][a-z]+)+", reason)


def test_exit_codes_are_those_of_the_contract() -> None:
    text = CONTRACT.read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d+)( R)? \| ([A-Z][A-Za-z]+)(?= \|)", text) + re.findall(r"\| \| (\d+)( R)? \| ([A-Z][A-Za-z]+) \|", text)
    assert len({code for code, _, _ in rows}) == 34
    for code, retried, name in rows:
        reason = reason_for_exit_code(int(code))
        assert reason == name
        assert REASONS[Reason(name)].retried == bool(retried)
    assert reason_for_exit_code(0) is None
    assert reason_for_exit_code(137) is None
