"""How two answers to one request differ. Pure: bytes of both answers in, a finding out.

Understood are answers of the Open Inference Protocol (JSON and binary) and of /predict; of any other JSON the numbers are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import orjson

from slipway_runtime.serve.messages import HttpError
from slipway_runtime.serve.predict import is_class_like
from slipway_runtime.serve.tensors import DATATYPES, DTYPES, Array, Tensors, from_raw

OK = 200
BUSY = frozenset({429, 503})  # a canary of few pods that gets copies of all requests may well be
NO_ANSWER = 0  # the status of a side that was not reached, or did not answer in time
# Values that are no classes are equal within this and one hundredth of stable's.
ABSOLUTE, RELATIVE = 1e-3, 1e-2
# Relative errors are to stable's value, but to no less than this share of the largest: near 0 any error would be infinite.
RELATIVE_FLOOR = 0.1
_DTYPE_OF = {datatype: dtype for dtype, datatype in DATATYPES.items()}


class Result(StrEnum):
    """What one comparison found."""

    AGREED = "agreed"
    DIFFERED = "differed"
    FAILED = "failed"  # stable answered, and the canary answered with an error
    BUSY = "busy"  # the canary refused for load, or was not reached: says nothing about its answers
    SKIPPED = "skipped"  # stable did not answer 200, or nothing in the answers can be compared


@dataclass(frozen=True, slots=True)
class Answer:
    """What one side said: status (0: nothing), body, length of its JSON part when tensors follow it, and the seconds that it took."""

    status: int
    body: bytes = b""
    json_bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result; the largest absolute and relative difference of finite floats, None when there are none; and canary's extra seconds."""

    result: Result
    why: str = ""
    absolute: float | None = None
    relative: float | None = None
    latency: float | None = None


def compare(stable: Answer, canary: Answer) -> Finding:
    """Compare the answers of both revisions to one request."""
    if stable.status != OK or canary.status != OK:
        return _without_answer(stable, canary)
    latency = canary.seconds - stable.seconds
    try:
        want = tensors(stable)
    except (HttpError, ValueError, KeyError, TypeError, IndexError) as error:
        return Finding(Result.SKIPPED, f"stable's answer is not understood: {error}", latency=latency)
    try:
        got = tensors(canary)
    except (HttpError, ValueError, KeyError, TypeError, IndexError) as error:
        return Finding(Result.DIFFERED, f"the canary's answer is not understood: {error}", latency=latency)
    if not want:
        return Finding(Result.SKIPPED, "stable's answer holds no values", latency=latency)
    absolute, relative = _errors(want, got)
    why = _difference(want, got)
    return Finding(Result.AGREED if why is None else Result.DIFFERED, why or "", absolute, relative, latency)


def _without_answer(stable: Answer, canary: Answer) -> Finding:
    if stable.status != OK:
        return Finding(Result.SKIPPED, f"stable answered {stable.status}")
    if canary.status in BUSY or canary.status == NO_ANSWER:
        return Finding(Result.BUSY, f"the canary answered {canary.status}")
    return Finding(Result.FAILED, f"the canary answered {canary.status}: {canary.body[:200].decode(errors='replace')}")


def _difference(want: Tensors, got: Tensors) -> str | None:
    """Say in what the answers disagree, None when they agree.

    Where there are scores of classes, the best class of each row decides, as does the class of /predict; else all values must be close.
    """
    for name, array in want.items():
        other = got.get(name)
        if other is None or other.shape != array.shape:
            return f"{name} is {'absent' if other is None else list(other.shape)}, stable gives {list(array.shape)}"
        if _is_float(array) and _is_float(other) and (np.isfinite(array) & ~np.isfinite(other)).any():
            return f"{name} has NaN or infinite values, stable's are finite"
    scores = next((name for name, array in want.items() if is_class_like(array)), None)
    if scores is not None:
        best, other_best = want[scores].argmax(axis=1), got[scores].argmax(axis=1)
        rows = int(np.count_nonzero(best != other_best))
        return f"{scores}: another class in {rows} of {len(best)} rows" if rows else None
    judged = ["prediction"] if want.keys() == {"prediction", "probability"} else list(want)
    return next((f"{name} has other values" for name in judged if not _is_close(want[name], got[name])), None)


def _is_close(want: Array, got: Array) -> bool:
    if not (_is_float(want) and _is_float(got)):
        return bool(np.array_equal(want, got))
    return bool(np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True))


def _errors(want: Tensors, got: Tensors) -> tuple[float | None, float | None]:
    """The largest absolute and relative difference of any float that is finite on both sides."""
    absolute: list[float] = []
    relative: list[float] = []
    for name, array in want.items():
        other = got.get(name)
        if other is None or other.shape != array.shape or not (_is_float(array) and _is_float(other)) or not array.size:
            continue
        left, right = array.astype(np.float64), other.astype(np.float64)
        known = np.isfinite(left) & np.isfinite(right)
        difference, size = np.abs(left - right)[known], np.abs(left)[known]
        if not difference.size:
            continue
        floor = np.maximum(size, RELATIVE_FLOOR * float(size.max()))
        absolute.append(float(difference.max()))
        relative.append(float(np.divide(difference, floor, out=np.where(difference > 0, np.inf, 0.0), where=floor > 0).max()))
    return max(absolute, default=None), max(relative, default=None)


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fV"  # V is bfloat16


def tensors(answer: Answer) -> Tensors:
    """Read the values of an answer, by name.

    Raises:
        ValueError, KeyError, TypeError, IndexError, HttpError: It is malformed.
    """
    size = len(answer.body) if answer.json_bytes is None else answer.json_bytes
    value = orjson.loads(answer.body[:size])
    if isinstance(value, dict) and isinstance(value.get("outputs"), list):
        return dict(_protocol(value["outputs"], memoryview(answer.body)[size:]))
    return _predicted(value)


def _protocol(outputs: list[Any], rest: memoryview) -> Iterator[tuple[str, Array]]:
    start = 0
    for output in outputs:
        name, shape, datatype = str(output["name"]), [int(size) for size in output["shape"]], str(output["datatype"])
        dtype, raw = _DTYPE_OF[datatype], (output.get("parameters") or {}).get("binary_data_size")
        if raw is not None:
            yield name, from_raw(name, rest[start : start + int(raw)], dtype, shape)
            start += int(raw)
            continue
        flat = np.asarray([np.nan if item is None else item for item in _flat(output["data"])], dtype=DTYPES[dtype])
        yield name, flat.reshape(shape)


def _predicted(value: Any) -> Tensors:
    """The classes of /predict are compared as such; of anything else the numbers, in their order."""
    rows = value.get("predictions") if isinstance(value, dict) else None
    rows = [value] if rows is None and isinstance(value, dict) and "prediction" in value else rows
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "prediction" in row for row in rows):
        found: Tensors = {"prediction": np.asarray([row["prediction"] for row in rows])}
        if all(isinstance(row.get("probability"), int | float) for row in rows):
            found["probability"] = np.asarray([row["probability"] for row in rows], np.float64)
        return found
    numbers = [float("nan") if item is None else float(item) for item in _flat(value) if item is None or isinstance(item, int | float)]
    return {"values": np.asarray(numbers, np.float64)} if numbers else {}


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
