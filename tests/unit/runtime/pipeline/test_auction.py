"""Which candidate wins: objectives, ties within the noise, simplicity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slipway_runtime.validate.auction import LEAST_NOISE, MOST_NOISE, Entry, choose, noise_of

ONNX = Entry(0, "ONNX", "ONNX", "Float32", 1000, 0.010, 100.0)
EXPORTED = Entry(1, "ExportedProgram", "ExportedProgram", "Float32", 900, 0.010, 100.0)
AOTI = Entry(2, "AOTInductor", "AOTInductor", "Float32", 5000, 0.005, 300.0)
INT8 = Entry(3, "ONNX Int8Static", "ONNX", "Int8Static", 300, 0.004, 250.0)
EAGER = Entry(4, "None", "PyTorch", "Float32", 990, 0.02, 50.0)


@pytest.mark.parametrize(
    ("name", "entries", "objective", "want"),
    [
        ("nothing passed", [], "Latency", None),
        ("no objective: the first of the spec", [AOTI, ONNX], None, 0),
        ("no objective: speed does not count", [ONNX, INT8], None, 0),
        ("the fastest", [ONNX, EXPORTED, AOTI, INT8], "Latency", 3),
        ("the most a second", [ONNX, EXPORTED, AOTI, INT8], "Throughput", 2),
        ("the smallest", [ONNX, EXPORTED, AOTI, INT8], "Size", 3),
        ("equal: the simpler format, not the first", [replace(EXPORTED, number=0), replace(ONNX, number=1)], "Latency", 1),
        ("equal: the simpler precision", [replace(INT8, number=0, latency=0.01), replace(ONNX, number=1)], "Latency", 1),
        ("equal in all: the first", [ONNX, replace(ONNX, number=1)], "Latency", 0),
        ("2 % faster is noise", [ONNX, replace(AOTI, latency=0.0098)], "Latency", 0),
        ("4 % faster is not", [ONNX, replace(AOTI, latency=0.0096)], "Latency", 2),
        ("unless the best is restless", [ONNX, replace(AOTI, latency=0.0096, latency_noise=0.1)], "Latency", 0),
        ("or the simpler one is", [replace(ONNX, latency_noise=0.1), replace(AOTI, latency=0.0096)], "Latency", 0),
        (
            "the noise of latency is not that of throughput",
            [replace(ONNX, latency_noise=0.25), replace(AOTI, throughput=110.0)],
            "Throughput",
            2,
        ),
        ("size has 1 % of noise", [replace(ONNX, size=1005), replace(EAGER, size=1000)], "Size", 0),
        ("and no more", [replace(ONNX, size=1020), replace(EAGER, size=1000)], "Size", 4),
        ("not measured: not in the auction", [replace(ONNX, latency=None), EAGER], "Latency", 4),
        ("none measured: the first", [replace(AOTI, latency=None), replace(ONNX, latency=None)], "Latency", 0),
        ("a throughput of 0 is none", [replace(ONNX, throughput=0.0), EAGER], "Throughput", 4),
        ("size needs no measurement", [replace(ONNX, latency=None, throughput=None), EXPORTED], "Size", 1),
        ("eager is less simple than an exported program", [replace(EAGER, latency=0.01), EXPORTED], "Latency", 1),
        ("one only", [EAGER], "Latency", 4),
    ],
)
def test_choice(name, entries, objective, want):
    choice = choose(entries, objective)
    assert (choice.number if choice else None) == want, name


def test_the_order_of_the_list_does_not_matter():
    entries = [ONNX, EXPORTED, AOTI, INT8, EAGER]
    for objective in (None, "Latency", "Throughput", "Size"):
        assert choose(entries, objective) == choose(entries[::-1], objective)


@pytest.mark.parametrize(
    ("entries", "objective", "words"),
    [
        ([ONNX, AOTI], None, "ONNX is the first that passes"),
        ([ONNX, AOTI], "Latency", "AOTInductor is the best by Latency: 5 ms"),
        (
            [ONNX, replace(AOTI, latency=0.0099)],
            "Latency",
            "ONNX (10 ms) is as good by Latency as AOTInductor (9.9 ms)",
        ),
        ([replace(ONNX, latency=None)], "Latency", "none could be measured"),
    ],
)
def test_the_choice_says_why(entries, objective, words):
    assert words in choose(entries, objective).why


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="Latency, Throughput, Size"):
        choose([ONNX], "Beauty")


@pytest.mark.parametrize(
    ("rounds", "want"),
    [
        ([1.0, 1.0, 1.0], LEAST_NOISE),
        ([0.9, 1.0, 1.1], 0.1),
        ([0.1, 1.0, 9.0], MOST_NOISE),
        ([0.0, 0.0], LEAST_NOISE),
        ([2.0], LEAST_NOISE),
    ],
)
def test_noise(rounds, want):
    assert noise_of(rounds) == pytest.approx(want)
