"""How a new revision takes over: the state machine of every strategy, as one pure function `advance`.

What is remembered between two passes is small and lives in the cluster: the stable Service says which revision is stable and whom it
lets in, `status.canary` says which step a rollout is in and since when. Everything else is computed again in every pass, so that a pass
that died half way is simply repeated. docs/design/0007-rollouts.md has the diagram and the reasons.

Three rules hold in every state: weight leaves 0 only when the pods of the step are ready; a revision that lost its last ready pod gets
nothing while another can answer; the stable revision keeps its size until another one is stable (Recreate excepted, that is its point).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from slipway.api.reasons import Reason
from slipway.plan.diagnose import MODEL_FAULTS
from slipway.verdict import MetricVerdict, Replay, failures, lacks_traffic_only, overall

MAX_TRANSITIONS = 4  # in one pass; more would be a loop
SOON = 1.0  # seconds
# What passes when the cluster has room, or its registry, again: never a reason to give a revision up.
SHORTAGES = frozenset(
    {Reason.INSUFFICIENT_RESOURCES, Reason.QUOTA_EXCEEDED, Reason.IMAGE_PULL_FAILED, Reason.EVICTED, Reason.REGISTRY_UNAVAILABLE}
)


class Strategy(StrEnum):
    """How the new revision takes over; TAKE_OVER is what happens without `spec.rollout`."""

    TAKE_OVER = "TakeOver"
    CANARY = "Canary"
    BLUE_GREEN = "BlueGreen"
    RECREATE = "Recreate"


REPLAYED = frozenset({Strategy.CANARY, Strategy.BLUE_GREEN})  # those that can wait for it: stable answers meanwhile


class Phase(StrEnum):
    """Where a rollout stands."""

    PREPARING = "Preparing"  # the pods that the step needs are coming up; its weight is not given yet
    SHADOWING = "Shadowing"  # no weight; both revisions answer copies of requests, and their answers are compared
    PROGRESSING = "Progressing"  # the step's weight is given and its time runs
    PAUSED = "Paused"  # the step's weight is given; a promotion is needed to go on
    PROMOTING = "Promoting"  # every step is done; the pods come to full size
    ROLLED_BACK = "RolledBack"  # given up; not tried again until the spec asks for another revision


@dataclass(frozen=True, slots=True)
class Step:
    """A weight in percent and how long it is held, in seconds; None: until promoted."""

    weight: int
    duration: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user wants of a rollout: `spec.rollout`, `spec.paused` and the annotations."""

    strategy: Strategy = Strategy.TAKE_OVER
    steps: tuple[Step, ...] = ()
    has_gateway: bool = False
    pauses_on_failure: bool = False
    is_paused: bool = False
    promote: str | None = None  # "<revision>": all the way; "<revision>/<n>": past step n, counted from 1, and past the shadow before it
    abort: str | None = None  # a revision
    shadow: int | None = None  # seconds that answers are compared before the first step; None: not at all
    keep: int = 0  # seconds that the replaced revision keeps all its pods, so that going back to it takes none
    interval: int | None = None  # of the analysis, in seconds; None: nothing is measured
    needs_pass: bool = True  # of the analysis, before a step ends; else only a Fail counts
    needs_traffic: bool = True  # else a step whose time is over ends also when nothing but requests is lacking

    @property
    def gives_up(self) -> bool:
        """Whether a revision that does not come up in time is given up; the plain takeover waits for ever, as a Deployment does."""
        return self.strategy is not Strategy.TAKE_OVER

    def promoted_steps(self, revision: str) -> int:
        """Return how many steps of the revision count as promoted."""
        name, _, step = (self.promote or "").partition("/")
        if name != revision:
            return 0
        return int(step) if step.isdigit() else len(self.steps) + 1

    def skips_shadow(self, revision: str) -> bool:
        """Say whether the user promoted the revision past the comparison of answers, or further."""
        return (self.promote or "").partition("/")[0] == revision

    def skips_all(self, revision: str) -> bool:
        """Say whether the user promoted the revision all the way, whatever the analysis says."""
        return self.promote == revision


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a revision should not go on."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Side:
    """The pods of one revision: `size` is what its Deployment asks for, `pods` how many exist, `ready` how many answer.

    `is_complete`: the Deployment's controller has seen that size, and exactly that many pods exist and are available.
    `fault` is what its pods did wrong since the step began, or why they do not come up; `is_late`: they did not within the deadline.
    """

    size: int = 0
    pods: int = 0
    ready: int = 0
    is_complete: bool = False
    fault: Fault | None = None
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is remembered of a rollout: the content of `status.canary`."""

    revision: str
    phase: Phase = Phase.PREPARING
    step: int = 0  # counted from 0; len(steps) when all are done
    weight: int = 0  # percent that it was given
    since: datetime | None = None  # when the present weight was given, or when it was rolled back
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is. `sides` has every revision with a Deployment; `left` says when a revision lost its traffic."""

    target: str
    replicas: int
    stable: str | None = None  # what the stable Service says
    since: datetime | None = None  # when `stable` began to answer; None: it never did
    exposed: str | None = None  # the other revision that the stable Service lets in
    previous: str | None = None  # the revision that was stable before
    sides: Mapping[str, Side] = field(default_factory=dict)
    left: Mapping[str, datetime] = field(default_factory=dict)
    verdicts: Sequence[MetricVerdict] = ()
    has_comparator: bool = False  # whether the comparator of stable and target is ready
    replay: Replay = field(default_factory=Replay)  # of golden inputs on the target's pods, while it has no weight
    is_stable_waking: bool = False  # it had no pods because nobody wanted it, and has none that answers yet

    def side(self, revision: str | None) -> Side:
        """Return the pods of a revision; one without a Deployment has none."""
        return self.sides.get(revision or "", Side())


@dataclass(frozen=True, slots=True)
class Plan:
    """What should be: the stable revision, the traffic in percent by revision, the size of each Deployment, and what to remember."""

    stable: str | None
    weights: Mapping[str, int]
    sizes: Mapping[str, int]
    rollout: Rollout | None = None
    may_start: bool = True  # whether the target's pods may be made now
    again: float | None = None  # seconds until time alone changes the answer


def is_given_up(plan: Plan) -> bool:
    """Say whether the target was rolled back."""
    return plan.rollout is not None and plan.rollout.phase is Phase.ROLLED_BACK


def may_be_made(plan: Plan) -> bool:
    """Say whether the target's Deployment may be made, if there is none."""
    return plan.may_start and not is_given_up(plan)


def canary_size(weight: int, replicas: int, *, has_gateway: bool) -> int:
    """Return how many pods a canary needs for a weight beside `replicas` pods of stable.

    Behind a gateway it must carry its share of the load: the share of `replicas`, rounded up. Without one its number of pods makes the
    share: c / (replicas + c) nearest to the weight, at least 1 and at most `replicas`, so that the real share ends at one half.
    """
    if replicas == 0 or weight == 0:
        return 0
    if weight >= 100:
        return replicas
    if has_gateway:
        return max(1, -(-replicas * weight // 100))
    rest = 100 - weight
    return min(replicas, max(1, (2 * replicas * weight + rest) // (2 * rest)))


def advance(before: Rollout | None, seen: Observed, policy: Policy, now: datetime, drain_seconds: int) -> Plan:
    """Return what should be now.

    Args:
        before: what was remembered; of another revision than the target when the spec changed.
        seen: the cluster.
        policy: the user's wish.
        now: the present moment.
        drain_seconds: how long a revision keeps its pods after it lost its traffic.
    """
    stable, target = seen.stable, seen.target
    has_ever_answered = seen.since is not None or seen.side(stable).ready > 0
    if stable is None or (stable != target and not has_ever_answered):
        stable = target if target in seen.sides else stable  # nothing answers yet: there is nobody to protect
    left = dict(seen.left)
    if before is not None and before.revision != target and before.phase is not Phase.ROLLED_BACK:
        left[before.revision] = now
    seen = replace(seen, stable=stable, left=left)
    if stable is None or stable == target:
        return _settled(stable, seen, policy, now, drain_seconds)
    rollout = _walk(before, seen, policy, now)
    is_ready = _is_sized(seen, policy, seen.replicas) and _is_replayed(rollout, seen, policy)
    if rollout.phase is Phase.PROMOTING and is_ready and not _is_held(seen, policy):
        return _settled(target, replace(seen, left={**left, stable: now}, previous=stable), policy, now, drain_seconds)
    if rollout.phase is Phase.ROLLED_BACK and rollout.since is not None:
        seen = replace(seen, left={**left, target: rollout.since})
    plan = _rolling(rollout, seen, policy, now, drain_seconds)
    if before is not None and before.revision == target and _is_shut_out(before, seen, policy):
        return replace(plan, again=SOON)
    return plan


def _settled(stable: str | None, seen: Observed, policy: Policy, now: datetime, drain_seconds: int) -> Plan:
    """The target is stable, or comes up as the first; the one before it may be kept warm until the next rollout begins."""
    busy, left = {stable or seen.target: seen.replicas}, seen.left.get(seen.previous or "")
    rest = policy.keep - (now - left).total_seconds() if left is not None else 0.0
    is_warm = rest > 0 and seen.previous in seen.sides and seen.previous != stable and seen.side(seen.previous).size > 0
    if is_warm:
        busy[seen.previous or ""] = seen.replicas
    sizes, again = _with_drains(busy, seen, now, drain_seconds)
    again = _earliest(again, rest if is_warm else None)
    return Plan(stable, {} if stable is None else {stable: 100}, sizes, again=again)


def _walk(before: Rollout | None, seen: Observed, policy: Policy, now: datetime) -> Rollout:
    """Make transitions until none applies."""
    rollout = before if before is not None and before.revision == seen.target else Rollout(seen.target)
    if _is_shut_out(rollout, seen, policy) and _fault(rollout, seen, policy) is None:
        return _without_weight(rollout)  # and no further before that is written down: its time so far must not count
    for _ in range(MAX_TRANSITIONS):
        after = _next(rollout, seen, policy, now)
        if after == rollout:
            break
        rollout = after
    return rollout


def _next(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> Rollout:
    """Make at most one transition."""
    fault = None if rollout.phase is Phase.ROLLED_BACK else _fault(rollout, seen, policy)
    if fault is not None:
        return _failed(rollout, fault, policy, now)
    is_exposed = rollout.weight > 0 or rollout.phase is Phase.SHADOWING
    if is_exposed and seen.side(seen.target).ready == 0:
        return _without_weight(rollout)
    return _forward(rollout, seen, policy, now)


def _forward(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> Rollout:
    """Make the next transition of a rollout that nothing is wrong with."""
    if rollout.phase is Phase.ROLLED_BACK or rollout.phase is Phase.PROMOTING or _is_held(seen, policy):
        return rollout
    if rollout.step >= _last(rollout, policy):
        return replace(rollout, phase=Phase.PROMOTING, fault=None)
    if rollout.phase is Phase.PREPARING:
        return _prepared(rollout, seen, policy, now)
    if rollout.phase is Phase.SHADOWING:
        return _begun(rollout, seen, policy, now) if _is_compared(rollout, seen, policy, now) else rollout
    if not _is_done(rollout, seen, policy, now):
        return rollout
    return replace(rollout, phase=Phase.PREPARING, step=rollout.step + 1, fault=None)


def _is_shut_out(rollout: Rollout, seen: Observed, policy: Policy) -> bool:
    """Say whether it has a weight and is not let in: it lost its pods, or a pass for another spec closed the Service and died then."""
    return rollout.weight > 0 and not policy.has_gateway and seen.exposed != seen.target


def _without_weight(rollout: Rollout) -> Rollout:
    """Take the weight away until the pods of the step are ready again; the step then begins anew."""
    phase = rollout.phase if rollout.phase is Phase.PROMOTING else Phase.PREPARING
    return replace(rollout, phase=phase, weight=0, since=None)


def needs_stable(rollout: Rollout | None, policy: Policy) -> bool:
    """Say whether stable must have pods beside the target's: its answers are compared, it has a part of the traffic, or may get it back."""
    if rollout is None or rollout.phase is Phase.ROLLED_BACK:
        return False
    is_shared = any(step.weight < 100 for step in policy.steps[rollout.step : _last(rollout, policy)])
    return rollout.weight > 0 or is_shared or needs_shadow(rollout, policy)


def _last(rollout: Rollout, policy: Policy) -> int:
    """Return the number of steps that are walked; none when the user promoted all the way."""
    return 0 if policy.skips_all(rollout.revision) or policy.strategy in (Strategy.TAKE_OVER, Strategy.RECREATE) else len(policy.steps)


def _prepared(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> Rollout:
    """Give the step's weight once its pods are ready; before the first one, compare answers if that is wanted."""
    if seen.replicas == 0:
        return replace(rollout, step=len(policy.steps))  # there is no traffic to share
    if seen.is_stable_waking and needs_stable(rollout, policy):
        return rollout
    if not _is_replayed(rollout, seen, policy) or not _is_step_sized(rollout, seen, policy):
        return rollout
    if needs_shadow(rollout, policy):
        return replace(rollout, phase=Phase.SHADOWING, since=now) if seen.has_comparator else rollout
    return _begun(rollout, seen, policy, now)


def needs_shadow(rollout: Rollout, policy: Policy) -> bool:
    """Say whether answers are to be compared before the revision gets its first weight."""
    is_first = rollout.step == 0 and rollout.weight == 0 and rollout.phase in (Phase.PREPARING, Phase.SHADOWING)
    return policy.shadow is not None and bool(_last(rollout, policy)) and is_first and not policy.skips_shadow(rollout.revision)


def _is_compared(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> bool:
    """Say whether enough answers were compared: promoted by hand, or the time is over and the verdict, if one is needed, is a Pass."""
    if not needs_shadow(rollout, policy):
        return True
    is_over = rollout.since is not None and (now - rollout.since).total_seconds() >= (policy.shadow or 0)
    return rollout.fault is None and is_over and (not policy.needs_pass or _passes(_fresh(rollout, seen), policy))


def _is_step_sized(rollout: Rollout, seen: Observed, policy: Policy) -> bool:
    return _is_sized(seen, policy, canary_size(policy.steps[rollout.step].weight, seen.replicas, has_gateway=policy.has_gateway))


def _begun(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> Rollout:
    """Give the step's weight, if its pods are still ready."""
    if not _is_step_sized(rollout, seen, policy):
        return rollout
    step = policy.steps[rollout.step]
    fault = None if rollout.phase is Phase.SHADOWING else rollout.fault
    waits = step.duration is None or fault is not None
    return replace(rollout, phase=Phase.PAUSED if waits else Phase.PROGRESSING, weight=step.weight, since=now, fault=fault)


def _is_sized(seen: Observed, policy: Policy, size: int) -> bool:
    """Say whether the target has this many pods, all available, and the traffic can be given to it and to nobody else."""
    side = seen.side(seen.target)
    if seen.target not in seen.sides or side.size != size or not side.is_complete:
        return False
    others = (s for name, s in seen.sides.items() if name not in (seen.target, seen.stable))
    # without a gateway the Service lets in every pod of the deployment: those of a third revision must be gone first
    return policy.has_gateway or policy.strategy is Strategy.TAKE_OVER or all(s.size == 0 and s.pods == 0 for s in others)


def _is_replayed(rollout: Rollout, seen: Observed, policy: Policy) -> bool:
    """Say whether the golden inputs gave what they should, before the first request of a user.

    Pods that cannot be asked (Inconclusive) hold up only a rollout that asks for a Pass of its analysis.
    """
    if rollout.weight > 0 or policy.strategy not in REPLAYED or policy.promoted_steps(rollout.revision) > rollout.step:
        return True
    verdict = seen.replay.verdict
    return verdict in ("Pass", "Skipped") or (verdict == "Inconclusive" and not (policy.needs_pass and policy.interval is not None))


def _is_done(rollout: Rollout, seen: Observed, policy: Policy, now: datetime) -> bool:
    """Say whether the step may end: promoted by hand, or its time is over and the analysis, if there is one, passes."""
    if policy.promoted_steps(rollout.revision) > rollout.step:
        return True
    duration = policy.steps[rollout.step].duration
    if rollout.phase is Phase.PAUSED and (duration is None or rollout.fault is not None):
        return False
    if rollout.since is None or duration is None or (now - rollout.since).total_seconds() < duration:
        return False
    return policy.interval is None or not policy.needs_pass or _passes(_fresh(rollout, seen), policy)


def _passes(verdicts: Sequence[MetricVerdict], policy: Policy) -> bool:
    return overall(verdicts) == "Pass" or (not policy.needs_traffic and lacks_traffic_only(verdicts))


def _fresh(rollout: Rollout, seen: Observed) -> list[MetricVerdict]:
    """Return the verdicts about the present weight."""
    return [v for v in seen.verdicts if rollout.since is not None and v.at > rollout.since]


def _fault(rollout: Rollout, seen: Observed, policy: Policy) -> Fault | None:
    """Return why the rollout should stop, if it should."""
    if policy.abort == rollout.revision:
        return Fault(Reason.ROLLOUT_ABORTED, f"revision {rollout.revision} was aborted by the annotation slipway.dev/abort")
    if rollout.fault is not None and rollout.phase in (Phase.PAUSED, Phase.SHADOWING):
        return None  # onFailure: Pause; it is up to a person now
    side = seen.side(rollout.revision)
    is_to_blame = side.fault is not None and policy.gives_up and side.fault.reason not in SHORTAGES
    if side.fault is not None and is_to_blame and (side.is_late or (rollout.weight > 0 and side.fault.reason in MODEL_FAULTS)):
        return side.fault
    is_wrong = rollout.weight == 0 and seen.replay.verdict == "Fail" and policy.strategy in REPLAYED
    if is_wrong and policy.promoted_steps(rollout.revision) <= rollout.step:
        return Fault(Reason.GOLDEN_MISMATCH, f"golden inputs, replayed before it had any traffic: {seen.replay.message}")
    failed = [v for v in _fresh(rollout, seen) if v.verdict == "Fail"]
    if failed and not policy.skips_all(rollout.revision):
        return Fault(Reason.ANALYSIS_FAILED, f"at {rollout.weight} % of the traffic: {failures(failed)}")
    return None


def _failed(rollout: Rollout, fault: Fault, policy: Policy, now: datetime) -> Rollout:
    """Give the revision up, or stop where it is when the user wants to look first."""
    if policy.pauses_on_failure and fault.reason is Reason.ANALYSIS_FAILED:
        if rollout.phase is Phase.SHADOWING:
            return replace(rollout, fault=fault)  # where it is, nobody gets its answers
        is_ahead = rollout.phase in (Phase.PREPARING, Phase.PROMOTING)  # its weight is still that of the step before
        return replace(rollout, phase=Phase.PAUSED, step=max(0, rollout.step - is_ahead), fault=fault)
    return replace(rollout, phase=Phase.ROLLED_BACK, weight=0, since=now, fault=fault)


def _is_held(seen: Observed, policy: Policy) -> bool:
    """Say whether a pause keeps the target from becoming stable; not while a Recreate has nobody that answers."""
    return policy.is_paused and not (policy.strategy is Strategy.RECREATE and seen.side(seen.stable).size == 0)


def _rolling(rollout: Rollout, seen: Observed, policy: Policy, now: datetime, drain_seconds: int) -> Plan:
    """Stable answers, and the target is on its way or was given up."""
    stable, target = seen.stable or "", seen.target
    may_start = seen.exposed in (None, target)
    if policy.strategy is Strategy.RECREATE:
        busy = _recreate_sizes(rollout, seen, policy)
    else:
        busy = {stable: seen.replicas}
        if rollout.phase is not Phase.ROLLED_BACK:
            busy[target] = _target_size(rollout, seen, policy) if may_start else 0
    sizes, drain = _with_drains(busy, seen, now, drain_seconds)
    weights = _weights(rollout, seen, policy)
    return Plan(stable, weights, sizes, rollout, may_start, _earliest(drain, _step_left(rollout, policy, now)))


def _target_size(rollout: Rollout, seen: Observed, policy: Policy) -> int:
    if rollout.phase is Phase.PROMOTING or rollout.step >= _last(rollout, policy):
        return seen.replicas
    return canary_size(policy.steps[rollout.step].weight, seen.replicas, has_gateway=policy.has_gateway)


def _recreate_sizes(rollout: Rollout, seen: Observed, policy: Policy) -> dict[str, int]:
    """One after the other: who should answer gets its pods when those of the other are gone."""
    stable, target = seen.stable or "", seen.target
    is_down = rollout.phase is Phase.ROLLED_BACK or target not in seen.sides or (policy.is_paused and seen.side(stable).size > 0)
    winner, loser = (stable, target) if is_down else (target, stable)
    is_free = seen.side(loser).pods == 0
    return {loser: 0, winner: seen.replicas if is_free or (winner == stable and seen.side(stable).size > 0) else 0}


def _weights(rollout: Rollout, seen: Observed, policy: Policy) -> dict[str, int]:
    """Return the traffic in percent; a gateway gives all of it to a canary that has some while stable has nobody to answer.

    Without a gateway that happens by itself: a Service leads to ready pods only.
    """
    stable, target = seen.stable or "", seen.target
    if rollout.weight == 0:
        return {stable: 100}
    weight = 100 if policy.has_gateway and seen.side(stable).ready == 0 else rollout.weight
    return {name: share for name, share in ((stable, 100 - weight), (target, weight)) if share > 0}


def _with_drains(busy: Mapping[str, int], seen: Observed, now: datetime, drain_seconds: int) -> tuple[dict[str, int], float | None]:
    """Return the sizes of all Deployments, and the seconds until the next drain ends: who lost the traffic keeps its pods for a while."""
    sizes, waits = dict(busy), []
    for name, side in seen.sides.items():
        if name in busy:
            continue
        left = seen.left.get(name)
        rest = 0.0 if left is None else drain_seconds - (now - left).total_seconds()
        sizes[name] = side.size if rest > 0 else 0
        if side.size > 0 and rest > 0:
            waits.append(rest)
    return sizes, min(waits, default=None)


def _step_left(rollout: Rollout, policy: Policy, now: datetime) -> float | None:
    """Return the seconds until the step's time is over or the next evaluation is due; None while nothing is measured."""
    if rollout.since is None or (rollout.weight == 0 and rollout.phase is not Phase.SHADOWING):
        return None
    if rollout.phase is Phase.SHADOWING:
        left = (policy.shadow or 0) - (now - rollout.since).total_seconds()
        return _earliest(left if left > 0 else None, policy.interval)
    step = policy.steps[rollout.step] if rollout.phase is Phase.PROGRESSING and rollout.step < len(policy.steps) else None
    rest = step.duration - (now - rollout.since).total_seconds() if step is not None and step.duration is not None else 0.0
    return _earliest(rest if rest > 0 else None, policy.interval)


def _earliest(*times: float | None) -> float | None:
    return min((t for t in times if t is not None), default=None)
