"""Conditions as pure functions on lists of dictionaries.

This file knows the shape of a condition and nothing about when one is true. Conditions are plain dictionaries, because that is what the
API server sends and what is compared with it to find out whether anything changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from slipway.api.reasons import REASONS, Reason

Condition = Mapping[str, Any]

# The order users read: the answer first, then its parts, then what kstatus wants.
CONDITION_TYPES: tuple[str, ...] = (
    "Ready",
    "ArtifactReady",
    "Available",
    "Progressing",
    "Degraded",
    "Reconciling",
    "Stalled",
    "Experiments",
    "Shadow",
    "Autoscaling",
)
MAX_MESSAGE = 1024


def format_time(moment: datetime) -> str:
    """`metav1.Time`: UTC, whole seconds, `Z`. Finer times would be cut by the API server and look like a change ever after."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def get_condition(conditions: Sequence[Condition], type: str) -> Condition | None:
    """The condition of this type, if there is one."""
    return next((condition for condition in conditions if condition.get("type") == type), None)


def is_true(conditions: Sequence[Condition], type: str) -> bool:
    """Whether the condition of this type is there and says True."""
    condition = get_condition(conditions, type)
    return condition is not None and condition.get("status") == "True"


def set_condition(  # noqa: PLR0913 - the fields of a condition
    conditions: Sequence[Condition],
    *,
    type: str,
    status: bool | None,
    reason: Reason,
    message: str,
    generation: int,
    now: datetime,
) -> list[dict[str, Any]]:
    """The conditions with this one put in its place; `status` None is Unknown. lastTransitionTime moves only when the status does."""
    word = {True: "True", False: "False", None: "Unknown"}[status]
    before = get_condition(conditions, type)
    is_same = before is not None and before.get("status") == word and bool(before.get("lastTransitionTime"))
    condition = {
        "type": type,
        "status": word,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if is_same and before is not None else format_time(now),
        "reason": str(reason),
        "message": truncate(message),
    }
    others = [dict(other) for other in conditions if other.get("type") != type]
    return sorted([*others, condition], key=_position)


def remove_condition(conditions: Sequence[Condition], type: str) -> list[dict[str, Any]]:
    """The conditions without this type. `Stalled` and `Reconciling` are absent, not False, when they do not hold (kstatus)."""
    return [dict(condition) for condition in conditions if condition.get("type") != type]


def truncate(message: str, limit: int = MAX_MESSAGE) -> str:
    """The message, at most `limit` characters; a cut one ends in an ellipsis."""
    return message if len(message) <= limit else message[: limit - 1] + "…"


def blocking_message(reason: Reason, message: str) -> str:
    """The message followed by what to do next, once however often it is asked for. A long message is cut, never the advice."""
    fix = REASONS[reason].fix
    if not fix:
        return truncate(message)
    advice = f" Next: {fix}"
    message = message.removesuffix(advice)
    return truncate(message, MAX_MESSAGE - len(advice)) + advice


def _position(condition: Condition) -> tuple[int, str]:
    kind = str(condition.get("type"))
    return (CONDITION_TYPES.index(kind) if kind in CONDITION_TYPES else len(CONDITION_TYPES), kind)
