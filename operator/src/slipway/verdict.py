"""What the analysis of a canary says: plain values that it hands to the state machine of `plan/rollout.py`. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from slipway.api.analysis import MAX_ANALYSIS_HISTORY, Verdict
from slipway.api.conditions import format_time

__all__ = ["MetricVerdict", "Replay", "Verdict", "failures", "history", "lacks_traffic_only", "open_points", "overall"]
MAX_MESSAGE = 256


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """One metric of one evaluation.

    Numbers are texts, as in the API: `value` of the canary, `low` and `high` its bounds, `baseline` of the stable revision over the same
    window, `samples` requests that they rest on; `message` says what was measured and held against what. `needs_traffic`: Inconclusive,
    and more requests alone would decide. `at` is when it was evaluated: a verdict from before the present step says nothing about it.
    """

    name: str
    verdict: Verdict
    at: datetime
    value: str | None = None
    baseline: str | None = None
    samples: int = 0
    message: str = ""
    low: str | None = None
    high: str | None = None
    needs_traffic: bool = False

    def as_status(self) -> dict[str, Any]:
        """Return the row of `status.canary.metrics`."""
        values = {
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "baseline": self.baseline,
            "low": self.low,
            "high": self.high,
            "samples": self.samples,
            "message": self.message or None,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Replay:
    """What the golden inputs gave that were sent to the pods of a revision before it has any traffic.

    Skipped: there are none to send, or nobody to send them. Pending: they were not sent yet. `message` names the pod and what it answered.
    """

    verdict: Verdict | Literal["Skipped", "Pending"] = "Skipped"
    message: str = ""


def overall(verdicts: Sequence[MetricVerdict]) -> Verdict:
    """Return Fail when one fails, Pass when all pass and there is one, else Inconclusive: missing data is neither."""
    found = {verdict.verdict for verdict in verdicts}
    if "Fail" in found:
        return "Fail"
    return "Pass" if found == {"Pass"} else "Inconclusive"


def lacks_traffic_only(verdicts: Sequence[MetricVerdict]) -> bool:
    """Say whether nothing but traffic keeps them from passing."""
    return overall(verdicts) == "Inconclusive" and bool(verdicts) and all(v.needs_traffic for v in verdicts if v.verdict != "Pass")


def failures(verdicts: Sequence[MetricVerdict]) -> str:
    """Return the failed metrics as one line for people, with what was measured."""
    return "; ".join(f"{verdict.name}: {verdict.message}" for verdict in verdicts if verdict.verdict == "Fail")


def open_points(verdicts: Sequence[MetricVerdict]) -> str:
    """Return what keeps the metrics from passing, as one line for people; empty when nothing does."""
    return "; ".join(f"{verdict.name}: {verdict.message}" for verdict in verdicts if verdict.verdict != "Pass")


def history(verdicts: Sequence[MetricVerdict], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bounded history with this evaluation on top; saying one twice changes nothing."""
    at = format_time(verdicts[0].at)
    entry = {"at": at, "verdict": overall(verdicts), "message": open_points(verdicts)[:MAX_MESSAGE]}
    return [entry, *(dict(old) for old in before if old.get("at") != at)][:MAX_ANALYSIS_HISTORY]
