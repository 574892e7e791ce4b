"""A rollout where accelerators are scarce: surge, replace one by one, or wait and say who has them. Pure.

The rollout decides which sizes it wants; `share` bends them to what the nodes have free. Nothing is remembered: sizes and pods say it all,
so a pass that died half way is repeated. docs/design/0009-accelerators.md has the argument why this never comes to a standstill, and
`tests/unit/operator/test_room_worlds.py` walks every small world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slipway.api.reasons import Reason
from slipway.plan.diagnose import MODEL_FAULTS, Problem
from slipway.plan.nodes import Room

NAMED = 5  # holders and nodes in a message; the rest is counted
# What tells against the new model: then the old one gets its accelerators back, and is not asked again for this revision.
FAULTS = MODEL_FAULTS | {Reason.PROGRESS_DEADLINE_EXCEEDED}


@dataclass(frozen=True, slots=True)
class Team:
    """The pods of one revision: `size` its Deployment asks for, `pods` exist (ending ones too), `placed` have a node, `ready` answer."""

    revision: str
    size: int = 0
    pods: int = 0
    placed: int = 0
    ready: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """The sizes that both Deployments should have now, and why the target does not get all it wants (None: it does, or is about to)."""

    stable: int
    target: int
    shortage: Problem | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """The sizes that the rollout wants."""

    stable: int
    target: int


@dataclass(frozen=True, slots=True)
class Scarcity:
    """What is known about free accelerators.

    `target` and `stable` are the room for a pod of each; None when it cannot be known (DRA, or no right to list nodes). Then `refusal`
    (what the scheduler says about a pending pod of the target) stands in for it, and `is_same` says that what a pod of stable gives up
    is what one of the target needs. `fault` is what the target did wrong, now or before it gave its accelerators back. `leaving` are older
    revisions that have no more to do.
    """

    target: Room | None = None
    stable: Room | None = None
    refusal: str | None = None
    is_same: bool = False
    fault: Problem | None = None
    leaving: frozenset[str] = frozenset()


def share(wish: Wish, stable: Team, target: Team, scarcity: Scarcity) -> Share:
    """Return the sizes for now: those wished, if there is room for them beside each other.

    Else the target gets what is free; when that is nothing and nothing is under way, stable gives up one pod, provided that in the end
    all pods of the target find room. So all but one of the pods answer all the time, and a rollout that cannot end is not begun.
    """
    placed = _placed(target, scarcity.target)
    allowed = _allowed(wish, target, placed, scarcity)
    is_cramped = placed < wish.target and (allowed < wish.target or (scarcity.target is None and scarcity.refusal is not None))
    is_bad = wish.target > 0 and scarcity.fault is not None and scarcity.fault.reason in FAULTS
    if is_bad and (is_cramped or _holds_down(wish, stable, scarcity)):
        return Share(wish.stable, 0, scarcity.fault)
    if wish.target <= placed:
        return Share(_regrown(wish, stable, scarcity), wish.target)
    if not is_cramped:
        return Share(_kept(wish, stable), allowed)
    if _is_under_way(stable, target, placed, allowed, scarcity):
        return Share(_kept(wish, stable), allowed)
    if stable.size > 0 and _would_help(wish, stable, target, scarcity):
        return Share(min(stable.size, wish.stable) - 1 if wish.stable else 0, allowed)
    waiting = _kept(wish, stable) if placed else wish.stable
    return Share(waiting, allowed, shortage(wish.target - placed, stable.revision, target.revision, scarcity))


def _placed(team: Team, room: Room | None) -> int:
    """Return how many pods have a node, by the same look at the cluster that told what is free."""
    return team.placed if room is None else room.placed(team.revision)


def _kept(wish: Wish, stable: Team) -> int:
    """Stable keeps the size it has; it does not grow while the target is short."""
    return min(stable.size, wish.stable)


def _regrown(wish: Wish, stable: Team, scarcity: Scarcity) -> int:
    """The target has all it wants: what is left goes to stable, up to its own wish."""
    if wish.target == 0 or scarcity.stable is None or stable.size >= wish.stable:
        return wish.stable
    fitting = _placed(stable, scarcity.stable) + scarcity.stable.fits()
    return min(wish.stable, max(stable.size, fitting))


def _holds_down(wish: Wish, stable: Team, scarcity: Scarcity) -> bool:
    """Say whether stable cannot come back to its size while the target has what it has."""
    return stable.size < wish.stable and (scarcity.stable is None or _regrown(wish, stable, scarcity) < wish.stable)


def _allowed(wish: Wish, target: Team, placed: int, scarcity: Scarcity) -> int:
    """Return the target's size: the pods that have a node and those that find one; never less than it is, nor more than wished."""
    more = scarcity.target.fits() if scarcity.target is not None else 1  # unknown: one after the other
    return min(wish.target, max(target.size, placed + more))


def _is_under_way(stable: Team, target: Team, placed: int, allowed: int, scarcity: Scarcity) -> bool:
    """Say whether something that was begun has not ended: a pod of stable that ends, or one of the target that comes up."""
    if max(stable.pods, _placed(stable, scarcity.target)) > stable.size or placed > target.ready:
        return True
    if scarcity.target is None:
        return allowed > placed and scarcity.refusal is None
    return any(map(scarcity.target.placed, scarcity.leaving)) or min(allowed, placed + scarcity.target.fits()) > placed


def _would_help(wish: Wish, stable: Team, target: Team, scarcity: Scarcity) -> bool:
    if scarcity.target is None:
        return scarcity.is_same
    return scarcity.target.fits_without({stable.revision, target.revision, *scarcity.leaving}) >= wish.target


def lone_shortage(size: int, team: Team, scarcity: Scarcity) -> Problem | None:
    """Return what a revision lacks that has nobody beside it; its size is the user's affair."""
    placed = _placed(team, scarcity.target)
    room = scarcity.target
    is_short = placed + room.fits() < size if room is not None else placed < size and scarcity.refusal is not None
    return shortage(size - placed, team.revision, team.revision, scarcity) if is_short else None


def shortage(missing: int, stable: str, target: str, scarcity: Scarcity) -> Problem:
    """Return InsufficientAccelerators: how many are missing, what the nodes have, and who holds it."""
    room = scarcity.target
    if room is None:
        text = f"{_pods(missing)} of revision {target} wait for accelerators; the scheduler says: {scarcity.refusal}"
        return Problem(Reason.INSUFFICIENT_ACCELERATORS, text)
    needs = f"{_pods(missing)} of revision {target} {'needs' if missing == 1 else 'need'} {room.per_pod} {room.resource} each on one node"
    if not room.nodes:
        text = f"; the labels, taints or state of {_listed(room.excluded)} exclude the pods" if room.excluded else ""
        return Problem(Reason.INSUFFICIENT_ACCELERATORS, f"{needs}; no node that the pods may run on offers {room.resource}{text}")
    nodes = _listed([f"{node.name} has {node.free} of {node.offered} free" for node in room.nodes])
    own = {stable, target}
    others = sorted(((h.count, h.pod, n.name) for n in room.nodes for h in n.holders if h.revision not in own), reverse=True)
    held = _listed([f"{pod} ({count} on {node})" for count, pod, node in others])
    return Problem(Reason.INSUFFICIENT_ACCELERATORS, f"{needs}; {nodes}; held by {held or 'no other pods'}")


def _listed(words: Sequence[str]) -> str:
    rest = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + rest


def _pods(count: int) -> str:
    return f"{count} pod" if count == 1 else f"{count} pods"
