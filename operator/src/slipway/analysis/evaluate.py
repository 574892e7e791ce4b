"""The verdict: samples of canary and stable and the limits in, Pass, Fail or Inconclusive out. Pure; the reasons are in
docs/design/0008-analysis.md.

Fail: a bound that holds at all looks together excludes that the limit is kept. Pass: the value keeps the limit, and a canary
twice as bad as the limit (in odds) would have shown by now. Everything else, and above all missing data, is Inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slipway.analysis.histogram import Histogram, count_above, quantile, quantile_interval
from slipway.analysis.intervals import Interval
from slipway.analysis.sequential import intensity_sequence, rate_sequence
from slipway.analysis.verdict import QUANTILES, Cause, Evaluation, MetricResult, MetricSpec, Points, overall, show
from slipway.analysis.window import Sample
from slipway.api.analysis import Verdict

FAIL_ALPHA = 0.01  # chance that a canary which keeps every limit is failed, over all looks and all metrics of a step
PASS_ALPHA = 0.05  # chance that a canary twice as bad as a limit is ever passed by that metric, over all looks of a step
WORSE = 2.0  # "twice as bad", in odds


@dataclass(frozen=True, slots=True)
class Observations:
    """All that an evaluation rests on. `custom` and `custom_baseline` hold the points of each query, by the name of its metric."""

    canary: Sample
    stable: Sample | None = None
    custom: Mapping[str, Points] | None = None
    custom_baseline: Mapping[str, Points] | None = None


def evaluate(observed: Observations, specs: Sequence[MetricSpec], *, minimum_requests: int, now: float, stale_after: float) -> Evaluation:
    """Judge the canary.

    Args:
        observed: what both revisions did in the same window.
        specs: the metrics and their limits.
        minimum_requests: fewer requests than this in the window are Inconclusive.
        now: Unix seconds.
        stale_after: data older than this many seconds are missing data.
    """
    limits = sum(limit is not None for spec in specs for limit in (spec.maximum, spec.minimum, spec.increase))
    look = _Look(observed, minimum_requests, FAIL_ALPHA / max(1, limits), now, stale_after)
    results = tuple(_with_note(look.judge(spec), observed.canary) for spec in specs)
    return Evaluation(now, overall([result.verdict for result in results]), results)


def _with_note(result: MetricResult, canary: Sample) -> MetricResult:
    """Say how many of the requests nobody sent."""
    if canary.probes < 1 or result.cause is Cause.DATA:
        return result
    return replace(result, message=f"{result.message} ({int(canary.probes)} of {int(canary.requests)} requests were probes)")


@dataclass(frozen=True, slots=True)
class _Look:
    """One evaluation's inputs, so that the judges below take a metric only."""

    observed: Observations
    minimum_requests: int
    alpha: float
    now: float
    stale_after: float

    def judge(self, spec: MetricSpec) -> MetricResult:
        """The verdict on one metric: each of its limits is judged, and the worst counts."""
        if spec.query is not None:
            return self._judge_query(spec)
        canary = self.observed.canary
        if gap := self._gap(spec, canary, "canary"):
            return gap
        parts = []
        if spec.maximum is not None:
            parts.append(self._maximum(spec, canary, spec.maximum))
        if spec.minimum is not None:
            parts.append(self._minimum(spec, canary, spec.minimum))
        if spec.increase is not None:
            parts.append(self._increase(spec, canary, spec.increase))
        return self._worst(parts)

    def _gap(self, spec: MetricSpec, sample: Sample, who: str) -> MetricResult | None:
        """Why the sample says nothing about the metric, or None when it does."""
        samples = int(sample.requests)
        if sample.missing:
            return MetricResult(spec.name, "Inconclusive", f"data of the {who} are missing: {sample.missing}", Cause.DATA, samples=samples)
        if (age := self.now - sample.at) > self.stale_after:
            return MetricResult(spec.name, "Inconclusive", f"the newest data of the {who} are {age:.0f} s old", Cause.DATA, samples=samples)
        if spec.name in QUANTILES and sample.duration is None and sample.requests > 0:
            return MetricResult(
                spec.name, "Inconclusive", f"the {who} exports no slipway_request_duration_seconds", Cause.DATA, samples=samples
            )
        if spec.name == "nan-rate" and sample.nonfinite is None and sample.requests > 0:
            return MetricResult(
                spec.name, "Inconclusive", f"the {who} exports no slipway_nonfinite_outputs_total", Cause.DATA, samples=samples
            )
        if sample.requests < self.minimum_requests or _trials(spec, sample) == 0:
            message = f"{samples} of {self.minimum_requests} requests to the {who} so far"
            return MetricResult(spec.name, "Inconclusive", message, Cause.TRAFFIC, samples=samples)
        return None

    def _maximum(self, spec: MetricSpec, canary: Sample, limit: float) -> MetricResult:
        text, trials = f"at most {show(spec.name, limit)}", _trials(spec, canary)
        if spec.name not in QUANTILES:
            events = _events(spec, canary)
            bounds = rate_sequence(events, trials, self.alpha, guess=_guess(limit))
            return self._against_share(self._result(spec, bounds, trials), (events, events), limit, text)
        # "p99 is at most 250 ms" says: at most 1 % of the requests take longer. So it is judged as a rate.
        durations, share = _duration(canary), QUANTILES[spec.name]
        slower = count_above(durations, limit)
        unknown = durations.counts[-1] if len(durations.bounds) > 1 and limit > durations.bounds[-2] else 0.0
        result = self._result(spec, quantile_interval(durations, share, self.alpha), trials)
        return self._against_share(result, (slower, slower + unknown), 1 - share, text)

    def _against_share(self, result: MetricResult, events: tuple[float, float], share: float, limit: str) -> MetricResult:
        """The verdict on least and most events among the samples, of which the share must not be larger than `share`."""
        # Counts that are interpolated or extrapolated are rounded against the verdict that they would support.
        least, most, trials = math.floor(events[0] + 1e-6), math.ceil(events[1] - 1e-6), result.samples
        if share == 0:
            proven, kept, enough = least >= 1, most == 0, True
        else:
            worse = WORSE * share / (1 - share + WORSE * share)
            proven = rate_sequence(min(least, trials), trials, self.alpha, guess=_guess(share)).low > share
            kept = events[1] <= share * trials + 1e-6
            enough = rate_sequence(min(most, trials), trials, PASS_ALPHA, guess=_guess(share)).high < worse
        if proven:
            return replace(result, verdict="Fail", message=f"{self._shown(result)} must be {limit}")
        if not kept:
            return replace(result, cause=Cause.OPEN, message=f"{self._shown(result)} should be {limit}, but may be chance")
        if not enough:
            return replace(result, cause=Cause.TRAFFIC, message=f"{trials} requests are too few to tell it from twice that")
        return replace(result, verdict="Pass", message=limit)

    def _minimum(self, spec: MetricSpec, canary: Sample, limit: float) -> MetricResult:
        """Throughput: answers a second that are no errors, as a Poisson rate."""
        good = canary.requests - canary.errors
        if limit == 0:
            return replace(self._result(spec, Interval(good / canary.seconds, 0.0, math.inf), good), verdict="Pass", message="at least 0")
        bounds = intensity_sequence(good, canary.seconds, self.alpha, guess=limit)
        result = self._result(spec, bounds, good)
        text = f"at least {show(spec.name, limit)} a second"
        if bounds.high < limit:
            return replace(result, verdict="Fail", message=f"{self._shown(result)} must be {text}")
        if bounds.value < limit:
            return replace(result, cause=Cause.OPEN, message=f"{self._shown(result)} should be {text}, but may be chance")
        if intensity_sequence(good, canary.seconds, PASS_ALPHA, guess=limit).low <= limit / WORSE:
            return replace(result, cause=Cause.TRAFFIC, message=f"{result.samples} requests are too few to tell it from half of that")
        return replace(result, verdict="Pass", message=text)

    def _increase(self, spec: MetricSpec, canary: Sample, increase: float) -> MetricResult:
        stable = self.observed.stable
        if stable is None:
            return MetricResult(
                spec.name, "Inconclusive", "there is no stable revision to compare with", Cause.DATA, samples=int(canary.requests)
            )
        if gap := self._gap(spec, stable, "stable revision"):
            return replace(gap, value=_value(spec, canary), samples=int(canary.requests))
        if spec.name in QUANTILES:
            result, proven = self._slower(spec, canary, stable, increase)
        else:
            result, proven = self._more_often(spec, canary, stable, increase)
        baseline = _value(spec, stable)
        result = replace(result, baseline=baseline)
        text = f"at most {increase:.0%} above stable ({show(spec.name, baseline)})"
        if proven:
            return replace(result, verdict="Fail", message=f"{self._shown(result)} must be {text}")
        if not (result.value is not None and result.value <= baseline * (1 + increase)):
            return replace(result, cause=Cause.OPEN, message=f"{self._shown(result)} should be {text}, but may be chance")
        return replace(result, verdict="Pass", message=text)

    def _slower(self, spec: MetricSpec, canary: Sample, stable: Sample, increase: float) -> tuple[MetricResult, bool]:
        """Half of alpha for what stable's quantile is at most, half for that the canary's is beyond it."""
        share = QUANTILES[spec.name]
        ceiling = quantile_interval(_duration(stable), share, self.alpha / 2).high * (1 + increase)
        bounds = quantile_interval(_duration(canary), share, self.alpha)
        trials = _trials(spec, canary)
        slower = math.floor(count_above(_duration(canary), ceiling) + 1e-6) if math.isfinite(ceiling) else 0
        proven = rate_sequence(slower, trials, self.alpha / 2, guess=1 - share).low > 1 - share
        return self._result(spec, bounds, trials), proven

    def _more_often(self, spec: MetricSpec, canary: Sample, stable: Sample, increase: float) -> tuple[MetricResult, bool]:
        """Of all errors, the canary's share: with a request going to the canary with chance w, an error is the canary's with chance
        w*p/(w*p + (1-w)*q). So the two unknown rates become one known share (J. Przyborowski, H. Wilenski, Biometrika 31, 1940).
        """
        events, others = _events(spec, canary), _events(spec, stable)
        trials, rest = _trials(spec, canary), _trials(spec, stable)
        expected = trials * (1 + increase) / (trials * (1 + increase) + rest)
        bounds = rate_sequence(events, trials, self.alpha, guess=_guess(spec.maximum))
        proven = rate_sequence(events, events + others, self.alpha, guess=expected).low > expected
        return self._result(spec, bounds, trials), proven

    def _judge_query(self, spec: MetricSpec) -> MetricResult:
        """A custom query: all of its last points must agree, because nothing is known about how far chance moves them."""
        canary = self.observed.canary
        if canary.requests < self.minimum_requests and not canary.missing:
            message = f"{int(canary.requests)} of {self.minimum_requests} requests to the canary so far"
            return MetricResult(spec.name, "Inconclusive", message, Cause.TRAFFIC, samples=int(canary.requests))
        points = (self.observed.custom or {}).get(spec.name, Points(missing="the query was not run; is prometheus.address set?"))
        if gap := _point_gap(spec, points, ""):
            return gap
        baseline = None
        verdicts = []
        if spec.maximum is not None:
            verdicts.append(_agreement([value <= spec.maximum for value in points.values]))
        if spec.minimum is not None:
            verdicts.append(_agreement([value >= spec.minimum for value in points.values]))
        if spec.increase is not None:
            others = (self.observed.custom_baseline or {}).get(spec.name, Points(missing="the query was not run for stable"))
            if gap := _point_gap(spec, others, " for the stable revision"):
                return replace(gap, value=points.values[-1])
            baseline = others.values[-1]
            pairs = zip(reversed(points.values), reversed(others.values), strict=False)
            verdicts.append(_agreement([value <= other * (1 + spec.increase) for value, other in pairs]))
        verdict = overall(verdicts)
        words = {"Pass": "within its limits", "Fail": "beyond its limit", "Inconclusive": "not on one side of its limit"}
        message = f"the last {len(points.values)} points are {words[verdict]}"
        cause = Cause.OPEN if verdict == "Inconclusive" else Cause.NONE
        value, low, high = points.values[-1], min(points.values), max(points.values)
        return MetricResult(spec.name, verdict, message, cause, value, baseline, len(points.values), low, high)

    def _result(self, spec: MetricSpec, bounds: Interval, samples: float) -> MetricResult:
        return MetricResult(spec.name, "Inconclusive", "", Cause.NONE, bounds.value, None, int(samples), bounds.low, bounds.high)

    def _shown(self, result: MetricResult) -> str:
        low, high = show(result.name, result.low), show(result.name, result.high) or "∞"
        return f"{show(result.name, result.value)} [{low}, {high}] over {result.samples} requests"

    def _worst(self, parts: Sequence[MetricResult]) -> MetricResult:
        """The part that decides, with the baseline of whichever part has one."""
        order = {"Fail": 0, "Inconclusive": 1, "Pass": 2}
        causes = [Cause.DATA, Cause.OPEN, Cause.TRAFFIC, Cause.NONE]
        worst = min(parts, key=lambda part: (order[part.verdict], causes.index(part.cause)))
        baseline = next((part.baseline for part in parts if part.baseline is not None), None)
        return replace(worst, baseline=baseline)


def _guess(limit: float | None) -> float:
    return min(0.5, limit) if limit else 0.01


def _duration(sample: Sample) -> Histogram:
    if sample.duration is None:
        raise ValueError("the sample has no histogram; `_gap` sees to it first")
    return sample.duration


def _events(spec: MetricSpec, sample: Sample) -> float:
    # Never more than requests: the two are counted one after the other, and Prometheus extrapolates each alone.
    return min((sample.nonfinite or 0.0) if spec.name == "nan-rate" else sample.errors, _trials(spec, sample))


def _trials(spec: MetricSpec, sample: Sample) -> float:
    if spec.name in QUANTILES:
        return sample.duration.count if sample.duration else 0.0
    return float(math.floor(sample.requests + 1e-6))


def _value(spec: MetricSpec, sample: Sample) -> float:
    if spec.name in QUANTILES:
        return quantile(_duration(sample), QUANTILES[spec.name])
    return _events(spec, sample) / _trials(spec, sample)


def _agreement(kept: Sequence[bool]) -> Verdict:
    return "Pass" if all(kept) else "Inconclusive" if any(kept) else "Fail"


def _point_gap(spec: MetricSpec, points: Points, who: str) -> MetricResult | None:
    if points.missing or not points.values:
        return MetricResult(spec.name, "Inconclusive", f"the query gave nothing{who}: {points.missing or 'no values'}", Cause.DATA)
    if not all(map(math.isfinite, points.values)):
        return MetricResult(spec.name, "Inconclusive", f"the query gave NaN or infinity{who}", Cause.DATA, samples=len(points.values))
    if len(points.values) < 2:
        return MetricResult(spec.name, "Inconclusive", f"one point{who} so far, two are needed", Cause.DATA, points.values[-1], samples=1)
    return None
