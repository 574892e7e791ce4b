"""What the analysis of a canary says: plain values that it hands to the state machine of `plan/rollout.py`. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Verdict = Literal["Pass", "Fail", "Inconclusive"]


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """One metric of one evaluation.

    Numbers are texts, as in the API: `value` of the canary, `baseline` of the stable revision over the same window, `samples` requests
    that they rest on. `at` is when it was evaluated: a verdict from before the present step says nothing about it.
    """

    name: str
    verdict: Verdict
    at: datetime
    value: str | None = None
    baseline: str | None = None
    samples: int = 0
    message: str = ""

    def as_status(self) -> dict[str, Any]:
        """Return the row of `status.canary.metrics`."""
        values = {
            "name": self.name,
            "verdict": self.verdict,
            "value": self.value,
            "baseline": self.baseline,
            "samples": self.samples,
            "message": self.message or None,
        }
        return {key: value for key, value in values.items() if value is not None}


def overall(verdicts: Sequence[MetricVerdict]) -> Verdict:
    """Return Fail when one fails, Pass when all pass and there is one, else Inconclusive: missing data is neither."""
    found = {verdict.verdict for verdict in verdicts}
    if "Fail" in found:
        return "Fail"
    return "Pass" if found == {"Pass"} else "Inconclusive"


def failures(verdicts: Sequence[MetricVerdict]) -> str:
    """Return the failed metrics as one line for people, with what was measured."""
    return "; ".join(_line(verdict) for verdict in verdicts if verdict.verdict == "Fail")


def _line(verdict: MetricVerdict) -> str:
    against = f", stable {verdict.baseline}" if verdict.baseline is not None else ""
    measured = f" is {verdict.value}{against} over {verdict.samples} requests" if verdict.value is not None else ""
    return f"{verdict.name}{measured}" + (f" ({verdict.message})" if verdict.message else "")
