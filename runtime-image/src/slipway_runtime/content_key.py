"""The name under which the same conversion of the same source is found again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

from slipway_runtime.packages import installed_version

_TOOLS = ("slipway-runtime", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", "torchao", "torch_tensorrt")


def tool_versions() -> dict[str, str]:
    """Return the versions of whatever shapes an artifact's bytes, of those installed."""
    found = {name: installed_version(name) for name in _TOOLS}
    return {"python": platform.python_version()} | {name: version for name, version in found.items() if version is not None}


def content_key(source_digest: str, spec: Mapping[str, Any], tools: Mapping[str, str]) -> str:
    """Return the key, 64 hex digits, for a source digest and a ModelArtifact.spec; what does not shape the artifact is left out."""
    model = {key: value for key, value in spec["model"].items() if key not in ("uri", "digest", "credentialsSecretRef")}
    conversion = {key: value for key, value in (spec.get("conversion") or {}).items() if key not in ("timeout", "resources")}
    identity = {
        "sourceDigest": source_digest,
        "model": model,
        "signature": spec.get("signature"),
        "conversion": conversion,
        "tools": dict(tools),
        "architecture": platform.machine(),
    }
    for key in ("maxBatchSize", "accelerator"):  # what it is measured, and compiled, for
        if spec.get(key):
            identity[key] = spec[key]
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and no spaces, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
