"""Which of the candidates that pass is served: a pure function of what was measured and of the objective.

Ties. A number is measured in rounds, and what the rounds differ by is its noise: half the distance of the slowest from the fastest round,
relative to their median; never below 3 %, because two processes on one machine differ by that much, and never above 25 %, because a
machine so restless measures nothing. Candidates within the noise of the best, theirs or its own, are as good as the best, and of
those the simplest format wins: what needs the least at serving time and breaks least often on an upgrade. Sizes are exact; 1 % is a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_NOISE, MOST_NOISE = 0.03, 0.25
_SIZE_NOISE = 0.01
# ONNX: one file, the small image. TorchScript, ExportedProgram: one file, the torch image. PyTorch: the user's code in the server.
# AOTInductor: machine code of one CPU level. TorchTensorRT: an engine of one kind of GPU and one version of TensorRT.
_FORMATS = ("ONNX", "TorchScript", "ExportedProgram", "PyTorch", "TorchServe", "AOTInductor", "TorchTensorRT")
_PRECISIONS = ("Float32", "Float16", "BFloat16", "Int8Dynamic", "Int8Static")


@dataclass(frozen=True, slots=True)
class Entry:
    """A candidate that passed the parity gate.

    Attributes:
        number: its place in the spec.
        label: for the message.
        format: one of ONNX, TorchScript, ExportedProgram, PyTorch, TorchServe, AOTInductor, TorchTensorRT.
        precision: of the spec.
        size: bytes of its files.
        latency: median seconds of one sample, None when it was not measured.
        throughput: samples a second at the best batch size, None when it was not measured.
        latency_noise, throughput_noise: relative, see above.
    """

    number: int
    label: str
    format: str
    precision: str
    size: int
    latency: float | None = None
    throughput: float | None = None
    latency_noise: float = LEAST_NOISE
    throughput_noise: float = LEAST_NOISE


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen candidate's number, and why, for the user."""

    number: int
    why: str


def choose(entries: Sequence[Entry], objective: str | None) -> Choice | None:
    """Choose one of the candidates that passed, None when there is none.

    Args:
        entries: in the order of the spec.
        objective: Latency, Throughput or Size; None takes the first.

    Raises:
        ValueError: another objective.
    """
    if not entries:
        return None
    first = min(entries, key=lambda entry: entry.number)
    if objective is None:
        return Choice(first.number, f"{first.label} is the first that passes")
    costs = {entry.number: (entry, *cost) for entry in entries if (cost := _cost(entry, objective)) is not None}
    if not costs:
        return Choice(first.number, f"{first.label} is the first that passes; none could be measured")
    best, least, noise = min(costs.values(), key=lambda row: (row[1], row[0].number))
    tied = [entry for entry, cost, own in costs.values() if cost <= least * (1 + max(noise, own))]
    winner = min(tied, key=_simplicity)
    if winner is best:
        return Choice(best.number, f"{best.label} is the best by {objective}: {_value(best, objective)}")
    allowed = max(noise, costs[winner.number][2])
    text = f"{winner.label} ({_value(winner, objective)}) is as good by {objective} as {best.label} ({_value(best, objective)})"
    return Choice(winner.number, f"{text} within the noise of {allowed:.0%}, and simpler")


def noise_of(rounds: Sequence[float]) -> float:
    """Return the relative noise of a number that was measured in rounds."""
    middle = sorted(rounds)[len(rounds) // 2]
    half = (max(rounds) - min(rounds)) / 2 / middle if middle > 0 else 0.0
    return min(MOST_NOISE, max(LEAST_NOISE, half))


def _cost(entry: Entry, objective: str) -> tuple[float, float] | None:
    if objective == "Latency":
        return None if entry.latency is None else (entry.latency, entry.latency_noise)
    if objective == "Throughput":
        return None if not entry.throughput else (1 / entry.throughput, entry.throughput_noise)
    if objective == "Size":
        return float(entry.size), _SIZE_NOISE
    raise ValueError(f"objective {objective!r} is not one of Latency, Throughput, Size")


def _simplicity(entry: Entry) -> tuple[int, int, int]:
    return _FORMATS.index(entry.format), _PRECISIONS.index(entry.precision), entry.number


def _value(entry: Entry, objective: str) -> str:
    if objective == "Size":
        return f"{entry.size} bytes"
    return f"{(entry.latency or 0) * 1000:.3g} ms" if objective == "Latency" else f"{entry.throughput or 0:.4g}/s"
