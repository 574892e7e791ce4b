"""Z7: every state that a small rollout can reach, explored exhaustively, with the real state machine.

The world is abstract (sizes, ready pods, one Service, one route, one status), the decisions are not: `advance` makes them all. The
operator dies after any subset of the writes of a pass. Time is `young` or `old` for each moment that is remembered, which is all that a
decision can tell apart. What must hold in every state is in `check`; what must follow from every state in `ends`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import combinations
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import pytest

from slipway.api.reasons import Reason
from slipway.plan.rollout import SOON, Fault, Observed, Phase, Plan, Policy, Rollout, Side, Step, Strategy, advance
from slipway.verdict import MetricVerdict, Replay

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
YOUNG, OLD = NOW - timedelta(seconds=1), NOW - timedelta(hours=1)  # an hour: the operator was away
DRAIN, HOLD = 10, 60
A, B, C = "a", "b", "c"
SHARED = "*"
T = TypeVar("T")


def replace(item: T, **changes: Any) -> T:
    """`dataclasses.replace`, many times as fast: it is called millions of times."""
    if isinstance(item, tuple):  # one of this file
        return item._replace(**changes)  # type: ignore[attr-defined,no-any-return]
    names, values = _parts(type(item))
    return type(item)(**{**dict(zip(names, values(item), strict=True)), **changes})


@cache
def _parts(kind: type[Any]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]:
    names = tuple(each.name for each in fields(kind))
    return names, attrgetter(*names)


class Pods(NamedTuple):
    size: int = 0
    ready: int = 0
    is_bad: bool = False  # what runs in them crashes


NO_PODS = Pods()


class World(NamedTuple):
    spec: str = B
    is_paused: bool = False
    abort: str | None = None
    pods: tuple[tuple[str, Pods], ...] = ((A, Pods(1, 1)),)
    stable: str = A
    selector: str = A  # a revision, or SHARED
    exposed: str | None = None
    route: tuple[tuple[str, int], ...] = ((A, 100),)
    rollout: Rollout | None = None
    left: tuple[tuple[str, bool], ...] = ()  # (revision, whether that was long ago)
    verdict: str | None = None  # of the present weight
    has_comparator: bool = False
    replay: str = "Skipped"  # of golden inputs, on the pods of the spec's revision

    def of(self, revision: str) -> Pods:
        for name, pods in self.pods:
            if name == revision:
                return pods
        return NO_PODS

    def with_pods(self, revision: str, pods: Pods) -> World:
        return replace(self, pods=tuple(sorted({**dict(self.pods), revision: pods}.items())))


@dataclass(frozen=True)
class Game:
    """What the environment may do besides failing to: the size of the state space."""

    policy: Policy
    replicas: int = 1
    specs: tuple[str, ...] = (A, B)
    crashes: bool = True  # of the operator
    people: bool = True  # pods that go bad, pauses and aborts
    replays: bool = False  # golden inputs are replayed before there is a weight
    plans: dict[tuple[Any, ...], Plan] = field(default_factory=dict, compare=False)  # what was decided, by what was seen


def side(world: World, revision: str) -> Side:
    pods = world.of(revision)
    fault = Fault(Reason.PODS_CRASHING, "exit code 3") if pods.is_bad and pods.ready < pods.size else None
    return Side(pods.size, pods.size, pods.ready, pods.ready == pods.size, fault)


def observe(world: World, game: Game) -> Observed:
    verdicts = () if world.verdict is None else (MetricVerdict("error-rate", world.verdict, NOW, "0.5", samples=100),)
    return Observed(
        target=world.spec,
        replicas=game.replicas,
        stable=world.stable,
        since=OLD,
        exposed=world.exposed,
        sides={name: side(world, name) for name, _ in world.pods},
        left={name: OLD if long_ago else YOUNG for name, long_ago in world.left},
        verdicts=verdicts,
        has_comparator=world.has_comparator,
        replay=Replay(world.replay),  # type: ignore[arg-type]
    )


# Most worlds differ by what is selected and routed, which `observe` does not look at.
SEEN = attrgetter(*(name for name in World._fields if name not in ("selector", "route")))


def decide(world: World, game: Game) -> Plan:
    seen = SEEN(world)
    plan = game.plans.get(seen)
    if plan is None:
        policy = replace(game.policy, is_paused=world.is_paused, abort=world.abort)
        plan = game.plans[seen] = advance(world.rollout, observe(world, game), policy, NOW, DRAIN)
    return plan


def writes(world: World, plan: Plan, game: Game) -> list[tuple[str, object]]:
    """The writes of objects that a pass makes; the status comes after them."""
    found: list[tuple[str, object]] = []
    for name, size in plan.sizes.items():
        is_new = name not in dict(world.pods)
        if (is_new and plan.may_start) or (not is_new and world.of(name).size != size):
            found.append(("size", (name, size)))
    selector = service_of(plan, game)
    if selector != (world.stable, world.selector, world.exposed):
        found.append(("service", selector))
    route = tuple(sorted(plan.weights.items()))
    if game.policy.has_gateway and route != world.route:
        found.append(("route", route))
    return found


def service_of(plan: Plan, game: Game) -> tuple[str, str, str | None]:
    assert plan.stable is not None
    if game.policy.has_gateway or len(plan.weights) == 1:
        only = plan.stable if game.policy.has_gateway else next(iter(plan.weights))
        return plan.stable, only, None if only == plan.stable else only
    other = next(name for name in plan.weights if name != plan.stable)
    return plan.stable, SHARED, other


def write(world: World, change: tuple[str, object]) -> World:
    kind, value = change
    if kind == "size":
        name, size = value  # type: ignore[misc]
        pods = world.of(name)
        return world.with_pods(name, replace(pods, size=size, ready=min(pods.ready, size)))
    if kind == "service":
        stable, selector, exposed = value  # type: ignore[misc]
        return replace(world, stable=stable, selector=selector, exposed=exposed)
    return replace(world, route=value)  # type: ignore[arg-type]


def write_status(world: World, plan: Plan, game: Game) -> World:
    rollout, left = plan.rollout, dict(world.left)
    before = world.rollout
    is_over = before is not None and (before.revision != world.spec or (rollout is not None and rollout.phase is Phase.ROLLED_BACK))
    if before is not None and is_over and before.phase is not Phase.ROLLED_BACK:
        left[before.revision] = False
    for name, weight in dict(world.route).items():
        if weight and name not in plan.weights:
            left[name] = False
    for name in plan.weights:
        left.pop(name, None)
    is_new = rollout is None or before is None or (rollout.weight, rollout.since) != (before.weight, before.since)
    replay = "Pending" if game.replays and rollout is not None and rollout.weight > 0 else world.replay
    return replace(world, rollout=rollout, left=tuple(sorted(left.items())), verdict=None if is_new else world.verdict, replay=replay)


def passes(world: World, plan: Plan, game: Game) -> Iterator[World]:
    """The states after one pass: a whole one, and those that died after some of the writes."""
    changes = writes(world, plan, game)
    subsets = range(len(changes) + 1) if game.crashes else (len(changes),)
    for count in subsets:
        for subset in combinations(changes, count):
            after = world
            for change in subset:
                after = write(after, change)
            if count == len(changes):
                yield write_status(after, plan, game)
            if game.crashes:
                yield after


def happens(world: World, game: Game) -> Iterator[World]:
    """What the environment may do next."""
    yield from pods_happen(world, game)
    yield from people_happen(world, game)
    if is_measured(world) and game.policy.interval:
        yield from (replace(world, verdict=verdict) for verdict in ("Pass", "Fail", "Inconclusive"))
    if game.replays and not is_weighted(world) and world.of(world.spec).ready > 0:
        yield from (replace(world, replay=found) for found in ("Pass", "Fail", "Inconclusive"))
    yield aged(world)


def is_measured(world: World) -> bool:
    return world.rollout is not None and (world.rollout.weight > 0 or world.rollout.phase is Phase.SHADOWING)


def is_weighted(world: World) -> bool:
    return world.rollout is not None and world.rollout.revision == world.spec and world.rollout.weight > 0


def pods_happen(world: World, game: Game) -> Iterator[World]:
    for name, pods in world.pods:
        if pods.ready < pods.size:
            more = world.with_pods(name, replace(pods, ready=pods.ready + 1))
            yield replace(more, replay="Pending") if game.replays and name == world.spec else more  # this pod was not asked yet
        if pods.ready > 0:
            yield world.with_pods(name, replace(pods, ready=pods.ready - 1))
        if game.people and not pods.is_bad and pods.ready > 0 and name != A:
            yield world.with_pods(name, replace(pods, ready=pods.ready - 1, is_bad=True))


def people_happen(world: World, game: Game) -> Iterator[World]:
    fresh = "Pending" if game.replays else "Skipped"
    yield from (replace(world, spec=spec, abort=None, replay=fresh) for spec in game.specs if spec != world.spec)
    if game.people:
        yield replace(world, is_paused=not world.is_paused)
        if world.rollout is not None:
            yield replace(world, abort=world.spec)
    if game.policy.shadow:
        yield replace(world, has_comparator=not world.has_comparator)


def aged(world: World) -> World:
    rollout = world.rollout
    old = None if rollout is None or rollout.since is None else OLD
    return replace(
        world,
        rollout=None if rollout is None else replace(rollout, since=old),
        left=tuple((name, True) for name, _ in world.left),
    )


def canonical(world: World) -> World:
    """Two ages are all that a decision can tell apart; when a status that was just written is read again, a moment has passed."""
    rollout = world.rollout
    if rollout is not None and rollout.since is not None and rollout.since != OLD:
        rollout = replace(rollout, since=YOUNG)
    left = tuple((name, is_old) for name, is_old in world.left if world.of(name).size > 0)
    return world if rollout is world.rollout and left == world.left else replace(world, rollout=rollout, left=left)


def answering(world: World, game: Game) -> dict[str, int]:
    """Who may get requests, with its wanted share; a shared Service gives to every ready pod."""
    if game.policy.has_gateway:
        return dict(world.route)
    if world.selector != SHARED:
        return {world.selector: 100}
    return {name: pods.ready for name, pods in world.pods if pods.ready > 0}


def check(before: World, plan: Plan, game: Game) -> None:
    """What holds for every decision."""
    assert sum(plan.weights.values()) == 100
    is_given = plan.weights.get(before.spec, 0) > 0 and before.stable != before.spec
    if game.policy.shadow and is_given and not is_weighted(before):
        assert before.rollout is not None, "users before the comparison"
        known = before.rollout
        assert (known.phase, known.since, before.verdict, known.fault) == (Phase.SHADOWING, OLD, "Pass", None)
    if game.replays and is_given and not is_weighted(before):
        assert before.replay == "Pass", "users before the replay"
    judged = plan.rollout is not None and plan.rollout.phase is Phase.ROLLED_BACK
    for name, weight in plan.weights.items():
        if weight and name != plan.stable:
            assert before.of(name).ready > 0, "weight on a revision that cannot answer"
            assert not judged
    if game.policy.strategy is not Strategy.RECREATE:
        assert plan.sizes[plan.stable or ""] == game.replicas, "stable is smaller than it should be, because of us"


def check_traffic(after: World, game: Game) -> None:
    """What holds after every whole pass, and after every part of one."""
    may_get = {after.stable, after.exposed, after.selector, SHARED}
    for name in answering(after, game):
        assert game.policy.has_gateway or name in may_get, f"{name} gets requests and nobody let it in"
    if game.policy.has_gateway:
        assert sum(dict(after.route).values()) == 100


def check_rest(world: World, plan: Plan, game: Game) -> None:
    """A pass as the worker makes it: objects until they are at rest, then the status. After it there is nothing more to do at once."""
    for _ in range(4):
        changes = writes(world, plan, game)
        if not changes:
            break
        for change in changes:
            world = write(world, change)
        plan = decide(world, game)
    after = write_status(world, plan, game)
    assert not changes, "the objects do not come to rest"
    if plan.again is not None and plan.again <= SOON:
        return
    again = decide(after, game)
    assert not writes(after, again, game), "a pass leaves work undone"
    assert again.rollout == after.rollout, "a pass leaves a transition undone"


def explore(game: Game) -> set[World]:
    """All states that can be reached, each checked."""
    first = canonical(World(replay="Pending" if game.replays else "Skipped"))
    seen, todo = {first}, deque([first])
    met: set[World] = set()  # before they were made canonical
    while todo:
        world = todo.popleft()
        plan = decide(world, game)
        check(world, plan, game)
        worlds = list(passes(world, plan, game))
        check_rest(world, plan, game)
        for after in worlds:
            check_traffic(after, game)
        for after in (*worlds, *happens(world, game)):
            if after in met:
                continue
            met.add(after)
            found = canonical(after)
            if found not in seen:
                seen.add(found)
                todo.append(found)
    return seen


def ends(world: World, game: Game, known: dict[World, str]) -> str:
    """Where the state leads when nobody interferes any more: pods come up (bad ones do not), time passes, the analysis passes."""
    path = [canonical(replace(world, is_paused=False))]
    while path[-1] not in known:
        after = helped(path[-1], game)
        if after == path[-1]:
            known[after] = outcome(after, game)
            break
        assert len(path) < 60, f"no end is reached: {path[-3:]}"
        path.append(after)
    return known.setdefault(path[0], known[path[-1]])


def helped(world: World, game: Game) -> World:
    """One pass, and an environment that does its part."""
    plan = decide(world, game)
    for change in writes(world, plan, game):
        world = write(world, change)
    world = canonical(write_status(world, plan, game))
    for name, pods in world.pods:
        world = world.with_pods(name, replace(pods, ready=0 if pods.is_bad and pods.size else pods.size))
    world = replace(aged(world), has_comparator=bool(game.policy.shadow))
    if game.policy.interval and is_measured(world) and world.verdict != "Fail":
        world = replace(world, verdict="Pass")
    if game.replays and world.replay in ("Pending", "Inconclusive") and world.of(world.spec).ready > 0:
        world = replace(world, replay="Pass")
    return canonical(world)


def outcome(world: World, game: Game) -> str:
    """What a state is in which nothing happens any more; "wrong" when it is none that a user could want."""
    is_over = world.rollout is None or world.rollout.phase is Phase.ROLLED_BACK
    if is_over:
        serving = world.spec if world.rollout is None else world.stable
        sizes = {name: pods.size for name, pods in world.pods if pods.size}
        is_right = world.stable == world.selector == serving and world.exposed is None and sizes == {serving: game.replicas}
        is_right = is_right and (not game.policy.has_gateway or world.route == ((serving, 100),))
        return "wrong" if not is_right else "served" if world.rollout is None else "rolled back"
    if world.of(world.spec).is_bad or world.of(world.stable).is_bad:
        return "waits for pods"
    if game.policy.pauses_on_failure and world.rollout is not None and world.rollout.fault is not None:
        assert world.rollout.phase in (Phase.PAUSED, Phase.SHADOWING)
        return "waits for a person"
    return "wrong"


CANARY = Policy(Strategy.CANARY, (Step(10, HOLD), Step(50, HOLD)))
GAMES = {
    "canary by replicas": Game(CANARY),
    "canary by replicas, two pods": Game(CANARY, replicas=2, crashes=False),
    "canary by replicas, analysed": Game(replace(CANARY, interval=15), crashes=False),
    "canary by replicas, three specs": Game(replace(CANARY, steps=(Step(50, HOLD),)), specs=(A, B, C), people=False),
    "canary by gateway": Game(replace(CANARY, has_gateway=True)),
    "canary by gateway, analysed": Game(replace(CANARY, has_gateway=True, interval=15), crashes=False),
    "canary by replicas, replayed": Game(replace(CANARY, interval=15, steps=(Step(50, HOLD),)), replays=True),
    "canary by gateway, compared first": Game(
        replace(CANARY, has_gateway=True, interval=15, steps=(Step(50, HOLD),), shadow=HOLD), crashes=True, people=False
    ),
    "canary by replicas, compared first, or paused": Game(
        replace(CANARY, interval=15, steps=(Step(50, HOLD),), shadow=HOLD, pauses_on_failure=True), crashes=False
    ),
    "blue-green, replayed": Game(Policy(Strategy.BLUE_GREEN, interval=15), replays=True),
    "blue-green": Game(Policy(Strategy.BLUE_GREEN, (Step(100, HOLD),))),
    "recreate": Game(Policy(Strategy.RECREATE)),
    "takeover": Game(Policy(), specs=(A, B, C), people=False),
}


NIGHTLY = {"canary by replicas, replayed"}  # the largest; blue-green, replayed goes the same way


@pytest.mark.parametrize(
    "game", [pytest.param(game, id=name, marks=pytest.mark.nightly if name in NIGHTLY else ()) for name, game in GAMES.items()]
)
def test_every_state_is_safe_and_leads_to_an_end(game: Game) -> None:
    states = explore(game)
    print(f"{len(states)} states")
    assert len(states) > 200, "the world is too small to say anything"
    known: dict[World, str] = {}
    found = {ends(world, game, known) for world in states}
    assert found <= {"served", "rolled back", "waits for pods"} | ({"waits for a person"} if game.policy.pauses_on_failure else set())
    assert "served" in found
