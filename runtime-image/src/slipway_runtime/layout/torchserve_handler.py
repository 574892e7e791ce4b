"""Serves a TorchScript model of Slipway in TorchServe: requests and answers of the Open Inference Protocol in JSON, or plain nested lists.

This file goes into the archive and runs in TorchServe's worker; it may import nothing of Slipway.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import torch

_TYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


class Handler:
    """The entry point that TorchServe looks for: one class with `initialize` and `handle`."""

    def initialize(self, context: Any) -> None:
        """Load the model that the manifest names."""
        folder, gpu = context.system_properties["model_dir"], context.system_properties.get("gpu_id")
        with open(os.path.join(folder, "slipway-model.json"), encoding="utf-8") as file:
            self.described = json.load(file)
        torch.set_num_threads(self.described["threads"])
        self.device = torch.device(f"cuda:{gpu}" if gpu is not None and torch.cuda.is_available() else "cpu")
        path = os.path.join(folder, context.manifest["model"]["serializedFile"])
        self.model = torch.jit.load(path, map_location=self.device).eval()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Answer the requests of a batch; one that is wrong is answered 400 and does not fail the others."""
        answers: list[Any] = [None] * len(data)
        asked: dict[int, tuple[list[torch.Tensor], dict[str, Any] | None]] = {}
        for number, row in enumerate(data):
            try:
                asked[number] = self._inputs(row)
            except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
                context.set_response_status(code=400, idx=number)
                answers[number] = {"error": f"{type(error).__name__}: {error}"}
        for group in self._groups(asked):
            outputs = self._run([asked[number][0] for number in group])
            for number, tensors in zip(group, outputs, strict=True):
                answers[number] = self._answer(context, tensors, asked[number][1])
        return answers

    def _inputs(self, row: dict[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any] | None]:
        """Return the tensors of a request, and the request itself where it is one of the protocol."""
        value = row.get("body", row.get("data"))
        if isinstance(value, (bytes, bytearray, str)):
            value = json.loads(value)
        if isinstance(value, dict) and isinstance(value.get("inputs"), list):
            given = {item["name"]: item for item in value["inputs"]}
            return [self._tensor(spec, given[spec["name"]]) for spec in self.described["inputs"]], value
        (spec,) = self.described["inputs"]  # several must be named
        return [self._plain(spec, value.get("data") if isinstance(value, dict) else value)], None

    def _tensor(self, spec: dict[str, Any], item: dict[str, Any]) -> torch.Tensor:
        if item["datatype"] != spec["datatype"]:
            raise ValueError(f"input {spec['name']} must be {spec['datatype']}, not {item['datatype']}")
        tensor = torch.tensor(item["data"], dtype=_TYPES[spec["datatype"]])
        if tensor.numel() != math.prod(item["shape"]):
            raise ValueError(f"input {spec['name']}: shape {item['shape']} is not that of {tensor.numel()} values")
        return self._checked(spec, tensor.reshape(item["shape"]))

    def _plain(self, spec: dict[str, Any], value: Any) -> torch.Tensor:
        tensor = torch.tensor(value, dtype=_TYPES[spec["datatype"]])
        return self._checked(spec, tensor.unsqueeze(0) if tensor.dim() == len(spec["shape"]) - 1 else tensor)

    def _checked(self, spec: dict[str, Any], tensor: torch.Tensor) -> torch.Tensor:
        wanted = spec["shape"]
        if tensor.dim() != len(wanted) or any(want not in (-1, got) for want, got in zip(wanted, tensor.shape, strict=True)):
            raise ValueError(f"input {spec['name']} must have the shape {wanted} (-1: any), not {list(tensor.shape)}")
        return tensor.to(self.device)

    def _groups(self, asked: dict[int, Any]) -> list[list[int]]:
        """Return the requests that may go in together: those of one shape behind the batch dimension."""
        if not self.described["batches"]:
            return [[number] for number in asked]
        by_shape: dict[Any, list[int]] = {}
        for number, (tensors, _) in asked.items():
            rows = {len(tensor) for tensor in tensors}
            key = tuple(tensor.shape[1:] for tensor in tensors) if len(rows) == 1 else number
            by_shape.setdefault(key, []).append(number)
        return list(by_shape.values())

    def _run(self, requests: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """Call the model once; returns the outputs of each request."""
        columns = [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*requests, strict=True)]
        with torch.inference_mode():
            result = self.model(*columns)
        if isinstance(result, dict):
            result = [result[spec["name"]] for spec in self.described["outputs"]]
        outputs = [tensor.cpu() for tensor in ([result] if isinstance(result, torch.Tensor) else result)]
        if len(requests) == 1:
            return [outputs]
        parts = [torch.split(tensor, [len(request[0]) for request in requests]) for tensor in outputs]
        return [list(part) for part in zip(*parts, strict=True)]

    def _answer(self, context: Any, tensors: list[torch.Tensor], request: dict[str, Any] | None) -> Any:
        if request is None:
            nested = tensors[0].tolist()
            return nested[0] if len(nested) == 1 else nested
        outputs = [
            {"name": spec["name"], "datatype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data": tensor.flatten().tolist()}
            for spec, tensor in zip(self.described["outputs"], tensors, strict=False)
        ]
        return {"model_name": context.model_name, "outputs": outputs} | ({"id": request["id"]} if "id" in request else {})
