"""Which version of a package is there, when it may be there under another name."""

from __future__ import annotations

from importlib import metadata

import pytest

from slipway_runtime.content_key import tool_versions
from slipway_runtime.packages import installed_version


@pytest.mark.parametrize(
    ("installed", "name", "version"),
    [
        ({"numpy": "2.4"}, "numpy", "2.4"),
        ({"numpy": "2.4"}, "torch", None),
        ({"onnxruntime": "1.32"}, "onnxruntime", "1.32"),
        ({"onnxruntime-gpu": "1.31"}, "onnxruntime", "1.31"),
        ({"onnxruntime-gpu": "1.31"}, "onnxruntime-gpu", "1.31"),
        ({"onnxruntime": "1.32"}, "onnxruntime-gpu", None),
    ],
)
def test_versions(monkeypatch, installed, name, version):
    def found(package):
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(metadata, "version", found)
    assert installed_version(name) == version
    assert tool_versions().get("onnxruntime") == installed_version("onnxruntime"), "another version makes another artifact"
