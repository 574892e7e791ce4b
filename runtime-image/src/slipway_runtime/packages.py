"""Versions of the packages that are installed."""

from __future__ import annotations

from importlib import metadata

# The same module in another build, under another name: only one of them can be installed.
_OTHER_BUILDS = {"onnxruntime": "onnxruntime-gpu"}


def installed_version(name: str) -> str | None:
    """Return the version of a package, or of another build of it; None when there is neither."""
    for known in (name, _OTHER_BUILDS.get(name)):
        try:
            if known is not None:
                return metadata.version(known)
        except metadata.PackageNotFoundError:
            continue
    return None
