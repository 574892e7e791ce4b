"""Every small world of scarce accelerators: from each reachable state the rollout ends, or waits for a reason that is true.

The scheduler may put a pod on any node where it fits, the ReplicaSet may end any of its pods, and everything may happen in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from slipway.plan.nodes import Holder, Node, Room
from slipway.plan.room import Scarcity, Share, Team, Wish, share

PENDING, STARTING, READY, ENDING = "pending", "starting", "ready", "ending"
Pod = tuple[str, int]  # state and node; -1 while it has none


@dataclass(frozen=True)
class World:
    """Two revisions, o (stable) and n (target), on nodes of which strangers hold some accelerators."""

    offered: tuple[int, ...]
    strangers: tuple[int, ...]
    needs: tuple[int, int]
    wish: int
    is_known: bool = True
    sizes: tuple[int, int] = (0, 0)
    pods: tuple[tuple[Pod, ...], tuple[Pod, ...]] = ((), ())
    only: int | None = None  # the one node whose product the target wants

    def allows(self, side: int, node: int) -> bool:
        return side == 0 or self.only in (None, node)

    def free(self, node: int) -> int:
        used = sum(self.needs[side] for side in (0, 1) for _, at in self.pods[side] if at == node)
        return self.offered[node] - self.strangers[node] - used

    def room(self, side: int) -> Room | None:
        if not self.is_known:
            return None
        nodes = []
        for index, count in enumerate(self.offered):
            if not self.allows(side, index):
                continue
            held = [Holder(f"p{s}", self.needs[s], "on"[s]) for s in (0, 1) for _, at in self.pods[s] if at == index]
            nodes.append(Node(str(index), count, (Holder("stranger", self.strangers[index]), *held)))
        return Room("gpu", self.needs[side], tuple(nodes))

    def team(self, side: int) -> Team:
        pods = self.pods[side]
        return Team("on"[side], self.sizes[side], len(pods), sum(at >= 0 for _, at in pods), sum(state == READY for state, _ in pods))

    def plan(self) -> Share:
        is_refused = any(p[0] == PENDING for p in self.pods[1]) and not any(
            self.allows(1, n) and self.free(n) >= self.needs[1] for n in range(len(self.offered))
        )
        scarcity = Scarcity(
            target=self.room(1),
            stable=self.room(0),
            refusal="Insufficient gpu" if is_refused else None,
            is_same=self.needs[0] == self.needs[1],
        )
        return share(Wish(self.wish, self.wish), self.team(0), self.team(1), scarcity)

    def with_pods(self, side: int, pods: Iterator[Pod] | list[Pod]) -> World:
        changed = tuple(sorted(pods))
        return replace(self, pods=(changed, self.pods[1]) if side == 0 else (self.pods[0], changed))

    def next(self) -> Iterator[World]:
        plan = self.plan()
        yield replace(self, sizes=(plan.stable, plan.target))
        for side in (0, 1):
            yield from self.scaled(side)
            yield from self.moved(side)

    def scaled(self, side: int) -> Iterator[World]:
        """What the ReplicaSet may do."""
        pods = list(self.pods[side])
        living = [p for p in pods if p[0] != ENDING]
        if len(living) < self.sizes[side]:
            yield self.with_pods(side, [*pods, (PENDING, -1)])
        if len(living) > self.sizes[side]:
            unplaced = [p for p in living if p[0] == PENDING]
            for victim in set(unplaced or living):
                rest = pods.copy()
                rest.remove(victim)
                yield self.with_pods(side, rest if victim[1] < 0 else [*rest, (ENDING, victim[1])])

    def moved(self, side: int) -> Iterator[World]:
        """What the scheduler and the kubelets may do."""
        pods = list(self.pods[side])
        for pod in set(pods):
            rest = pods.copy()
            rest.remove(pod)
            if pod[0] == PENDING:
                for node in range(len(self.offered)):
                    if self.allows(side, node) and self.free(node) >= self.needs[side]:
                        yield self.with_pods(side, [*rest, (STARTING, node)])
            elif pod[0] == STARTING:
                yield self.with_pods(side, [*rest, (READY, pod[1])])
            elif pod[0] == ENDING:
                yield self.with_pods(side, rest)

    def ready(self) -> int:
        return self.team(0).ready + self.team(1).ready

    def is_done(self) -> bool:
        return self.team(1).ready == self.wish and self.sizes[1] == self.wish

    def could_end(self) -> bool:
        """Whether all pods of the target fit when stable has none; pods of one size, so a node holds what its count says."""
        nodes = (n for n in range(len(self.offered)) if self.allows(1, n))
        return sum((self.offered[n] - self.strangers[n]) // self.needs[1] for n in nodes) >= self.wish


def starts(nodes: int, most: int, *, is_known: bool) -> Iterator[World]:
    """Worlds in which stable is complete."""
    for offered in itertools.combinations_with_replacement(range(1, most + 1), nodes):
        for strangers in itertools.product(*(range(min(2, n + 1)) for n in offered)):
            for needs in ((1, 1), (1, 2), (2, 1), (2, 2)):
                for wish in (1, 2, 3):
                    world = World(offered, strangers, needs, wish, is_known, sizes=(wish, 0))
                    for places in itertools.combinations_with_replacement(range(nodes), wish):
                        placed = world.with_pods(0, [(READY, node) for node in places])
                        if all(placed.free(n) >= 0 for n in range(nodes)):
                            yield placed


def explore(start: World) -> dict[World, set[World]]:
    graph: dict[World, set[World]] = {}
    todo = [start]
    while todo:
        state = todo.pop()
        if state in graph:
            continue
        graph[state] = {after for after in state.next() if after != state}
        todo += graph[state]
        assert len(graph) < 20000
    return graph


def has_cycle(graph: dict[World, set[World]], start: World) -> bool:
    done: set[World] = set()
    path: set[World] = set()
    stack: list[tuple[World, Iterator[World]]] = [(start, iter(graph[start]))]
    path.add(start)
    while stack:
        state, rest = stack[-1]
        after = next(rest, None)
        if after is None:
            stack.pop()
            path.discard(state)
            done.add(state)
        elif after in path:
            return True
        elif after not in done:
            path.add(after)
            stack.append((after, iter(graph[after])))
    return False


WORLDS = [w for nodes, most in ((1, 4), (2, 2)) for w in starts(nodes, most, is_known=True)]
WORLDS += [replace(w, only=node) for w in WORLDS if len(w.offered) == 2 for node in (0, 1)]


def test_there_are_worlds_of_every_sort() -> None:
    assert len(WORLDS) > 100
    assert {w.wish for w in WORLDS} == {1, 2, 3}
    assert {w.could_end() for w in WORLDS} == {True, False}


@pytest.mark.parametrize("wish", [1, 2, 3])
def test_known_room_ends_or_waits_for_a_true_reason(wish: int) -> None:
    for start in (w for w in WORLDS if w.wish == wish):
        graph = explore(start)
        assert not has_cycle(graph, start), start
        room = start.room(1)
        assert room is not None
        may_surge = room.fits() >= 1
        for state, following in graph.items():
            if start.needs == (1, 1) and start.only is None:
                assert state.ready() >= start.wish - (0 if may_surge else 1), state
            if not start.could_end():
                assert state.team(0).ready == start.wish, ("stable was hurt for a rollout that cannot end", state)
            if not following:
                assert state.is_done() == start.could_end(), state
                assert state.is_done() or state.plan().shortage is not None, state


@pytest.mark.parametrize("wish", [1, 2])
def test_unknown_room_goes_by_what_the_scheduler_says(wish: int) -> None:
    for start in (w for w in starts(2, 2, is_known=False) if w.wish == wish):
        graph = explore(start)
        assert not has_cycle(graph, start), start
        for state, following in graph.items():
            if not following and start.needs[0] == start.needs[1]:
                assert state.is_done(), state
            if not following:
                assert state.is_done() or state.plan().shortage is not None, state
