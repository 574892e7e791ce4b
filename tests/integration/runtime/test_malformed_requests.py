"""A hundred thousand malformed requests over sockets, HTTP and gRPC, beside clients that ask rightly (tests/bench/attack_bench.py)."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import attack_bench as bench

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]
EACH = 50_000
MEMORY_MB = 200  # the server has 55 to 70 when nobody attacks it


@dataclass(frozen=True)
class Counted(bench.Target):
    """So many requests of each client, however long they take."""

    def until(self) -> Iterator[random.Random]:
        for number in range(EACH // bench.CLIENTS):
            yield random.Random(number)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    made = bench.Load(bench.MODELS["mlp"](), tmp_path_factory.mktemp("load"))
    (made.folder / "binary.size").write_text(made.bodies["binary"][1]["Inference-Header-Content-Length"])
    return made


@pytest.mark.parametrize(("attack", "good", "bad"), [("malformed, HTTP", "200", "5"), ("malformed, gRPC", "grpc 0", ("grpc 2", "grpc 13"))])
def test_malformed_requests_are_refused_and_hurt_nobody(load, attack, good, bad):
    with bench.running(bench.PEERS["slipway"], load) as (process, port, _):
        made = bench.ATTACKS[attack]
        with bench.good_clients(load, port) as took:  # which fails when one of them was answered wrongly
            counts = made.make(Counted(port + made.over_grpc, 0, load.folder))
        print(attack, dict(counts), bench.memory_mb(process))
        assert counts.total() >= EACH
        assert not [status for status in counts if status.startswith(bad)], counts
        assert counts[good] < EACH / 2, "most were to be malformed"
        assert min(map(len, took.values())) > 100
        assert bench.memory_mb(process) < MEMORY_MB
