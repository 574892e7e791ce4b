"""What good clients notice of hostile ones: `attack_bench.py` writes docs/benchmarks/attacks.md and attacks.jsonl.

A server of the MLP (one worker, everything on) is asked by one good client over HTTP and one over gRPC, each every few milliseconds,
while another process attacks it. An attack that asks as fast as it is answered is compared with as many clients that ask rightly:
what it costs is to be no more than what they cost. All others are compared with a server that nobody else asks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/bench")]

import h2.config  # noqa: E402
import h2.connection  # noqa: E402
import h2.events  # noqa: E402
from hyperframe import frame as frames  # noqa: E402
from serving_bench import Load, memory_mb, running  # noqa: E402
from serving_models import MODELS  # noqa: E402
from serving_peers import PEERS  # noqa: E402

from slipway_runtime.serve import oip  # noqa: E402
from unit.runtime.serve.test_malformed import mutated_bytes, mutated_json  # noqa: E402

ROWS, PAGE = ROOT / "docs/benchmarks/attacks.jsonl", ROOT / "docs/benchmarks/attacks.md"
INFER = "/v2/models/m/infer"
METHOD = f"/{oip.SERVICE}/ModelInfer".encode()
PAUSE = 0.005
CLIENTS = 4
Counts = Counter[str]


# --- clients ----------------------------------------------------------------------------------------------------------


def conversation() -> h2.connection.H2Connection:
    """HTTP/2 of a client that has said hello."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    made.initiate_connection()
    return made


def call(made: h2.connection.H2Connection, data: bytes, *, end: bool = True) -> None:
    """A call of ModelInfer with these bytes."""
    stream = made.get_next_available_stream_id()
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", METHOD), (b":authority", b"x")]
    made.send_headers(stream, [*head, (b"content-type", b"application/grpc")])
    made.send_data(stream, data, end_stream=end)


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Client:
    """A connection that is made anew when it has to be, or when nothing came for `patience` seconds."""

    def __init__(self, port: int, patience: float = 30) -> None:
        self.port, self.patience, self.socket = port, patience, None

    def close(self) -> None:
        """Connect again at the next question."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Http(Client):
    """A client of HTTP/1.1 that sends what it is told."""

    def ask(self, data: bytes) -> str:
        """Send bytes and read one answer; its status, or "cut off"."""
        try:
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self.port), self.patience)
            self.socket.sendall(data)
            return self._answer(self.socket)
        except TimeoutError:
            self.close()
            return "waited for more"
        except OSError:
            self.close()
            return "cut off"

    def _answer(self, open_socket: socket.socket) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            part = open_socket.recv(65536)
            if not part:
                raise OSError
            data += part
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        missing = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0) - len(rest)
        while missing > 0:
            part = open_socket.recv(65536)
            if not part:
                raise OSError
            missing -= len(part)
        if b"connection: close" in lines:
            self.close()
        return head[9:12].decode()


class Rpc(Client):
    """A client of gRPC on h2, which is slow, but sends what it is told."""

    def ask(self, message: bytes) -> str:
        """Send one message; the grpc-status of its answer, or "cut off"."""
        try:
            if self.socket is None:
                self.connect()
            call(self.h2, framed(message))
            self.socket.sendall(self.h2.data_to_send())
            return self.status()
        except (OSError, h2.exceptions.ProtocolError):
            self.close()
            return "cut off"

    def connect(self) -> None:
        """A new connection."""
        self.socket = socket.create_connection(("127.0.0.1", self.port), self.patience)
        self.h2 = conversation()

    def status(self) -> str:
        """The grpc-status of the answer."""
        status = ""
        while True:
            data = self.socket.recv(65536)
            if not data:
                raise OSError
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    status = dict(event.headers).get(b"grpc-status", status.encode()).decode()
                elif isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.socket.sendall(self.h2.data_to_send())
                    return f"grpc {status}"
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    raise OSError


# --- attacks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What an attack is told."""

    port: int
    seconds: float
    folder: Path

    def until(self) -> Iterator[random.Random]:
        """A new source of chance until the time is over."""
        end, seed = time.monotonic() + self.seconds, 0
        while time.monotonic() < end:
            yield random.Random(f"{os.getpid()} {seed}")
            seed += 1

    def good_binary(self) -> tuple[bytes, bytes]:
        """The JSON and the numbers of a right request."""
        body = (self.folder / "binary.body").read_bytes()
        size = int((self.folder / "binary.size").read_text())
        return body[:size], body[size:]

    def good_rpc(self) -> bytes:
        """A right message."""
        return (self.folder / "grpc.body").read_bytes()


def post(body: bytes, json_bytes: int | None = None) -> bytes:
    """A request for ModelInfer."""
    length = b"" if json_bytes is None else b"inference-header-content-length: %d\r\n" % json_bytes
    return b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (INFER.encode(), length, len(body)) + body


def right_http(target: Target) -> Counts:
    """As many clients that ask rightly."""
    head, tail = target.good_binary()
    request = post(head + tail, len(head))
    return in_threads(target, Http, lambda random_: request)


def right_rpc(target: Target) -> Counts:
    """As many clients that ask rightly over gRPC."""
    message = target.good_rpc()
    return in_threads(target, Rpc, lambda random_: message)


def malformed_http(target: Target) -> Counts:
    """Requests with damaged JSON, numbers and lengths, and damaged HTTP."""
    head, tail = target.good_binary()
    plain = json.loads((target.folder / "json.body").read_bytes())

    def damaged(random_: random.Random) -> bytes:
        kind = random_.random()
        if kind < 0.4:
            return post(json.dumps(mutated_json(plain, random_)).encode())
        if kind < 0.6:
            body = json.dumps(mutated_json(json.loads(head), random_)).encode()
            return post(body + tail, len(body))
        if kind < 0.9:
            body = mutated_bytes(head + tail, random_)
            return post(body, random_.choice([len(head), 0, len(body), 1 << 60]))
        return mutated_bytes(post(head + tail, len(head)), random_) + b"\r\n\r\n"

    return in_threads(target, Http, damaged)


def malformed_rpc(target: Target) -> Counts:
    """Damaged messages over gRPC."""
    message = target.good_rpc()
    return in_threads(target, Rpc, lambda random_: mutated_bytes(message, random_))


def in_threads(target: Target, client: type[Http | Rpc], request: Callable[[random.Random], bytes]) -> Counts:
    """Clients that ask as fast as they are answered; what they were answered."""

    def work(_: int) -> Counts:
        own, asks = Counts(), client(target.port, 0.2)
        for random_ in target.until():
            own[asks.ask(request(random_))] += 1
        return own

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(work, range(CLIENTS)), Counts())


def damaged_http2(target: Target) -> Counts:
    """Conversations in HTTP/2 with a few bytes changed, each on a connection of its own."""
    counts, client = Counts(), conversation()
    for _ in range(3):
        call(client, framed(target.good_rpc()))
    said = client.data_to_send()
    for random_ in target.until():
        counts[sent(target.port, mutated_bytes(said, random_))] += 1
    return counts


def sent(port: int, data: bytes, *, waits: float = 0.05) -> str:
    """Send bytes on a new connection; whether it was closed by the other side within `waits` seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), 30) as open_socket:
            open_socket.sendall(data)
            open_socket.settimeout(waits)
            while open_socket.recv(65536):
                pass
            return "closed"
    except TimeoutError:
        return "left open"
    except OSError:
        return "reset"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames.SettingsFrame(0).serialize()


def flood(target: Target, first: bytes, again: Callable[[int], bytes]) -> Counts:
    """Frames as fast as they are taken, until the other side closes; then anew."""
    counts = Counts()
    end = time.monotonic() + target.seconds
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", target.port), 30) as open_socket:
            open_socket.sendall(PREFACE + first)
            number = 0
            while time.monotonic() < end:
                open_socket.sendall(again(number))
                counts["bursts"] += 1
                number += 1
        counts["connections"] += 1
    return counts


def rapid_resets(target: Target) -> Counts:
    """Calls that are cancelled as soon as they are made (CVE-2023-44487)."""
    block = bytes([0x83, 0x86, 0x04, len(METHOD)]) + METHOD + b"\x0f\x10\x10application/grpc"

    def burst(number: int) -> bytes:
        data = b""
        for index in range(50):
            stream = 2 * (50 * number + index) + 1
            head = frames.HeadersFrame(stream, block, flags=["END_HEADERS"])
            data += head.serialize() + frames.RstStreamFrame(stream, error_code=8).serialize()
        return data

    return flood(target, b"", burst)


def continuation_flood(target: Target) -> Counts:
    """Headers that never end (CVE-2024-28182)."""
    return flood(
        target,
        frames.HeadersFrame(1, b"\x00\x01a\x01b").serialize(),
        lambda _: frames.ContinuationFrame(1, b"\x00\x01a\x01b" * 500).serialize(),
    )


def ping_flood(target: Target) -> Counts:
    """Pings whose answers nobody reads."""
    return flood(target, b"", lambda _: frames.PingFrame(0, b"12345678").serialize() * 500)


def settings_flood(target: Target) -> Counts:
    """Settings, each of which wants an answer."""
    return flood(target, b"", lambda _: frames.SettingsFrame(0, {4: 65535}).serialize() * 500)


def large_bodies(target: Target) -> Counts:
    """Bodies of 1 GB, announced, and in chunks without an end."""
    block = bytes(1 << 20)

    def work(row: tuple[bytes, bytes]) -> Counts:
        counts, (head, piece) = Counts(), row
        end = time.monotonic() + target.seconds
        while time.monotonic() < end:
            status, sent_bytes = "cut off", 0
            with suppress(OSError), socket.create_connection(("127.0.0.1", target.port), 30) as open_socket:
                open_socket.sendall(head)
                with suppress(OSError):
                    while sent_bytes < 1 << 30 and time.monotonic() < end:
                        open_socket.sendall(piece)
                        sent_bytes += len(piece)
                open_socket.settimeout(5)
                status = open_socket.recv(65536)[9:12].decode() or "cut off"
            counts[status] += 1
        return counts

    start = b"POST %b HTTP/1.1\r\nhost: x\r\n" % INFER.encode()
    announced, chunked = start + b"content-length: 1073741824\r\n\r\n", start + b"transfer-encoding: chunked\r\n\r\n"
    rows = [(announced, block), (announced, block), (chunked, b"100000\r\n" + block + b"\r\n"), (chunked, b"100000\r\n" + block + b"\r\n")]
    with ThreadPoolExecutor(len(rows)) as pool:
        return sum(pool.map(work, rows), Counts())


def large_messages(target: Target) -> Counts:
    """Messages of gRPC that say they are 1 GB."""
    data = b"\0" + (1 << 30).to_bytes(4, "big") + bytes(1000)
    counts = Counts()
    for _ in target.until():
        client = Rpc(target.port)
        with suppress(OSError, h2.exceptions.ProtocolError):
            client.connect()
            call(client.h2, data, end=False)
            client.socket.sendall(client.h2.data_to_send())
            counts[client.status()] += 1
        client.close()
    return counts


def slow_heads(target: Target) -> Counts:
    """500 clients that send a byte of a head now and then."""
    counts, clients = Counts(), []
    for random_ in target.until():
        while len(clients) < 500:
            with suppress(OSError):
                clients.append(socket.create_connection(("127.0.0.1", target.port), 30))
                clients[-1].sendall(b"POST /v2 HTTP/1.1\r\n")
                counts["connections"] += 1
        kept = []
        for client in clients:
            try:
                client.sendall(random_.choice([b"a", b": b\r\n", b"c"]))
                kept.append(client)
            except OSError:
                counts["cut off"] += 1
        clients = kept
        time.sleep(0.1)
    return counts


def slow_heads_elsewhere(target: Target) -> Counts:
    """The same at a port where nobody reads: what the attackers take of the cores that all share, without the server's part."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as nobody:
        return slow_heads(replace(target, port=nobody.getsockname()[1]))


def header_flood(target: Target) -> Counts:
    """Heads of a megabyte."""
    head = b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: %b\r\n" % (number, b"y" * 1000) for number in range(1000)) + b"\r\n"
    return in_threads(target, Http, lambda random_: head)


@dataclass(frozen=True)
class Attack:
    """An attack: what makes it, whether over gRPC, and the rows it is compared with."""

    make: Callable[[Target], Counts]
    over_grpc: bool = False
    beside: tuple[str, ...] = ("nothing",)


ATTACKS = {
    "right, HTTP": Attack(right_http),
    "right, gRPC": Attack(right_rpc, over_grpc=True),
    "malformed, HTTP": Attack(malformed_http, beside=("right, HTTP",)),
    "malformed, gRPC": Attack(malformed_rpc, over_grpc=True, beside=("right, gRPC",)),
    "damaged HTTP/2": Attack(damaged_http2, over_grpc=True, beside=("right, gRPC",)),
    "rapid resets": Attack(rapid_resets, over_grpc=True, beside=("right, gRPC",)),
    "CONTINUATION flood": Attack(continuation_flood, over_grpc=True, beside=("right, gRPC",)),
    "PING flood": Attack(ping_flood, over_grpc=True, beside=("right, gRPC",)),
    "SETTINGS flood": Attack(settings_flood, over_grpc=True, beside=("right, gRPC",)),
    "bodies of 1 GB": Attack(large_bodies, beside=("right, HTTP",)),
    "messages of 1 GB": Attack(large_messages, over_grpc=True, beside=("right, gRPC",)),
    "header flood": Attack(header_flood, beside=("right, HTTP",)),
    "500 slow heads elsewhere": Attack(slow_heads_elsewhere),
    "500 slow heads": Attack(slow_heads, beside=("nothing", "500 slow heads elsewhere")),
}


# --- measuring --------------------------------------------------------------------------------------------------------


@contextmanager
def good_clients(load: Load, port: int) -> Iterator[dict[str, list[float]]]:
    """Two clients that ask now and then; the milliseconds of their answers, all of which must be right."""
    took: dict[str, list[float]] = {"http": [], "grpc": []}
    failed: Counts = Counts()
    over = threading.Event()
    body, size = (load.folder / "binary.body").read_bytes(), int((load.folder / "binary.size").read_text())
    clients = {"http": (Http(port), post(body, size), "200"), "grpc": (Rpc(port + 1), (load.folder / "grpc.body").read_bytes(), "grpc 0")}

    def work(name: str) -> None:
        client, request, right = clients[name]
        while not over.is_set():
            start = time.perf_counter()
            status = client.ask(request)
            took[name].append((time.perf_counter() - start) * 1e3)
            if status != right:
                failed[f"{name}: {status}"] += 1
            time.sleep(PAUSE)

    threads = [threading.Thread(target=work, args=(name,)) for name in clients]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failed:
        raise AssertionError(f"good clients were answered wrongly: {dict(failed)}")


def row_of(name: str, load: Load, process: int, port: int, seconds: float) -> dict[str, object]:
    """One row; without an attack of that name there is none."""
    attack, peak, counts = ATTACKS.get(name), [memory_mb(process)], {}
    with good_clients(load, port) as took:
        if attack is None:
            time.sleep(seconds)
        else:
            told = [name, str(port + attack.over_grpc), str(seconds), str(load.folder)]
            child = subprocess.Popen([sys.executable, __file__, "attack", *told], stdout=subprocess.PIPE, text=True)
            while child.poll() is None:
                peak.append(memory_mb(process))
                time.sleep(0.2)
            counts = json.loads(child.stdout.read())
    tails = {f"{kind}_p99_ms": round(statistics.quantiles(values, n=100)[98], 3) for kind, values in took.items()}
    halves = {f"{kind}_p50_ms": round(statistics.median(values), 3) for kind, values in took.items()}
    return {"attack": name, "counts": counts, "memory_mb": round(max(peak), 1), "good": sum(map(len, took.values())), **halves, **tails}


def measure(seconds: float, rounds: int) -> None:
    """All rows in each round, one server for all of them."""
    run = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with tempfile.TemporaryDirectory() as folder, ROWS.open("w") as file:
        load = Load(MODELS["mlp"](), Path(folder))
        (load.folder / "binary.size").write_text(load.bodies["binary"][1]["Inference-Header-Content-Length"])
        with running(PEERS["slipway"], load) as (process, port, _):
            for round_ in range(rounds):
                for name in ("nothing", *ATTACKS):
                    row = {"run": run, "round": round_, **row_of(name, load, process, port, seconds)}
                    print(row, flush=True)
                    file.write(json.dumps(row) + "\n")
                    file.flush()


def report() -> None:
    """The page."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    by_name = {name: [row for row in rows if row["attack"] == name] for name in ("nothing", *ATTACKS)}

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"

    lines = []
    for name, own in by_name.items():
        counts: Counts = Counts()
        for row in own:
            counts.update(row["counts"])
        told = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(counts.items(), key=lambda pair: -pair[1])[:6])
        first = [name, told or "–", f"{max(row['memory_mb'] for row in own):.0f}"]
        for number, beside in enumerate(ATTACKS[name].beside if name in ATTACKS else ("",)):
            cells = ["", "", ""] if number else first
            for kind in ("http", "grpc"):
                tails = [row[f"{kind}_p99_ms"] for row in own]
                ratios = [tail / other[f"{kind}_p99_ms"] for tail, other in zip(tails, by_name[beside or "nothing"], strict=True)]
                cells += ["" if number else spread(tails), spread(ratios) if beside else ""]
            lines.append("| " + " | ".join([*cells, beside]) + " |")
    rounds, asked = len(by_name["nothing"]), sum(row["good"] for row in rows)
    PAGE.write_text(f"""# What good clients notice of hostile ones

`make bench-attacks` ([the script](../../tests/bench/attack_bench.py) says how it is measured and has each attack; raw figures:
[attacks.jsonl](attacks.jsonl)). {os.cpu_count()} cores, which attackers, good clients and server share; {rounds} round(s), one
server for all of them. One good client over HTTP and one over gRPC ask every {PAUSE * 1e3:.0f} ms, {asked:,} times altogether, and
each was answered rightly. An attack that asks as fast as it is answered is compared with {CLIENTS} clients that ask rightly as
fast, in the same round, and one that keeps many connections busy also with the same at a port where nobody reads: what attackers take
of the cores themselves. Median (least to most) of the rounds. "waited for more": what was sent was the beginning of a request.

| attack | answers | memory, MB | good HTTP, p99 in ms | ratio | good gRPC, p99 in ms | ratio | beside |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--seconds", type=float, default=10)
    run.add_argument("--rounds", type=int, default=3)
    commands.add_parser("report")
    attack = commands.add_parser("attack")
    for name in ("name", "port", "seconds", "folder"):
        attack.add_argument(name)
    args = parser.parse_args()
    if args.command == "run":
        measure(args.seconds, args.rounds)
    elif args.command == "report":
        report()
    else:
        print(json.dumps(ATTACKS[args.name].make(Target(int(args.port), float(args.seconds), Path(args.folder)))))


if __name__ == "__main__":
    main()
