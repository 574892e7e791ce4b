"""The tables and the plot of docs/benchmarks/gpu.md, from the raw rows of gpu_bench.py in docs/benchmarks/gpu.

python tests/bench/gpu_report.py > tables.md      # and writes docs/benchmarks/gpu.svg
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs/benchmarks"
MODELS = ("resnet18", "vit-b", "encoder")
COLOURS = {"bare": "#b33", "plain": "#999", "graphs": "#15a", "device": "#393"}
NAMES = {"bare": "bare loop", "plain": "backend, no graphs", "graphs": "backend", "device": "inputs on the GPU"}
WIDTH, HEIGHT, LEFT, TOP = 300, 240, 60, 40


def raw(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"gpu/{name}.jsonl").read_text().splitlines()]


def table(head: list[str], rows: list[list[object]]) -> None:
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["target"], row["precision"]


def parity() -> None:
    rows: list[list[object]] = []
    for row in sorted(raw("build"), key=key):
        numbers = (
            ["", "", ""]
            if "failed" in row
            else [f"{row['error']:.2g} of {row['scale']:.2g}", f"{row['cosine']:.6f}", f"{row['top1']:.0f} %"]
        )
        rows.append([*key(row), *numbers, row.get("failed") or row["verdict"], row.get("buildSeconds", "")])
    table(["model", "target", "precision", "largest error", "cosine", "same class", "verdict", "build s"], rows)


def measured() -> None:
    rows: list[list[object]] = []
    for row in raw("measure"):
        if "latency" in row:
            bare, graphs, lanes = row["rows"]["bare"], row["rows"]["graphs"], row["lanes"]["32"]
            latency = [f"{row['latency'][way][0]:.2f}" for way in ("bare", "plain", "graphs")]
            replay = row.get("replayMs", {}).get("1", "")
            speeds = [
                f"{bare['32']:.0f}",
                f"{graphs['32']:.0f}",
                f"{lanes:.0f}" if lanes else "",
                f"{lanes / bare['32']:.2f}" if lanes else "",
                f"{row['rows']['device']['32']:.0f}",
            ]
            rows.append([*key(row), row["run"], *latency, replay, *speeds, row["memoryMiB"]])
    head = ["model", "target", "precision", "run", "bare ms", "backend, no graphs ms", "backend ms", "replay alone ms"]
    table([*head, "bare/s", "one thread/s", "3 lanes/s", "lanes : bare", "on the GPU/s", "MiB"], rows)


def served() -> None:
    bare = {(row["run"], *key(row)): row["rows"]["bare"]["32"] for row in raw("measure") if "latency" in row}
    rows: list[list[object]] = []
    for row in raw("serve"):
        ratio = f"{row['perSecond'] / bare[row['run'], *key(row)]:.2f}" if row["connections"] > 1 else ""
        load = f"{row['connections']} x {row['rows']}"
        numbers = [f"{row['perSecond']:.0f}", ratio, f"{row['p50ms']:.2f}", f"{row['p99ms']:.1f}", row["batch"], row["cpu"], row["loopCpu"]]
        rows.append([*key(row)[:1], row["variant"], row["run"], load, *numbers, row["memoryMiB"]])
    head = ["model", "server", "run", "connections x rows", "rows/s", "to bare"]
    table([*head, "p50 ms", "p99 ms", "batch", "CPUs", "of them the loop", "MiB"], rows)


def line(start: tuple[float, float], end: tuple[float, float], colour: str, width: int = 1) -> str:
    return f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def text(place: tuple[float, float], words: object, anchor: str = "start") -> str:
    return f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{anchor}">{words}</text>'


def dot(place: tuple[float, float]) -> str:
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="5" fill="{COLOURS["graphs"]}"/>'


def place_of(left: int, size: float, value: float) -> tuple[float, float]:
    """Where a point lies: 1 to 64 rows, 10^2.5 to 10^5 rows a second."""
    return left + math.log2(size) / 6 * WIDTH, TOP + (5 - math.log10(value)) / 2.5 * HEIGHT


def panel(left: int, model: str, row: dict[str, Any]) -> list[str]:
    bottom = TOP + HEIGHT
    parts = [text((left, TOP - 12), f"{model}, float16, TorchScript: rows/s by batch size")]
    for size in (1, 2, 4, 8, 16, 32, 64):
        x, _ = place_of(left, size, 1000)
        parts += [line((x, TOP), (x, bottom), "#eee"), text((x, bottom + 14), size, "middle")]
    for value in (1000, 3000, 10000, 30000, 100000):
        x, y = place_of(left, 1, value)
        parts += [line((x, y), (x + WIDTH, y), "#eee"), text((x - 6, y + 4), value, "end")]
    for way, colour in COLOURS.items():
        points = " ".join("{:.1f},{:.1f}".format(*place_of(left, int(size), value)) for size, value in row["rows"][way].items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return [*parts, dot(place_of(left, 32, row["lanes"]["32"]))]


def plot() -> str:
    """Rows a second by batch size, both axes logarithmic, a panel a model."""
    width, height = 3 * (WIDTH + LEFT) + 20, HEIGHT + TOP + 65
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    chosen = [row for row in raw("measure") if row["run"] == 2 and key(row)[1:] == ("TorchScript", "Float16")]
    found = {row["model"]: row for row in chosen}
    for number, model in enumerate(MODELS):
        parts += panel(LEFT + number * (WIDTH + LEFT), model, found[model])
    y = HEIGHT + TOP + 45
    for number, (way, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 190
        parts += [line((x, y), (x + 25, y), colour, 2), text((x + 30, y + 4), NAMES[way])]
    x = LEFT + 4 * 190
    return "\n".join([*parts, dot((x + 12, y)), text((x + 30, y + 4), "backend, 3 lanes, batch 32"), "</svg>", ""])


if __name__ == "__main__":
    parity()
    measured()
    served()
    (FOLDER / "gpu.svg").write_text(plot())
