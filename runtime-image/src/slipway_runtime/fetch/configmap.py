"""`configmap://NAME`: the ConfigMap is mounted; kubelet makes each key a link to ..data/KEY, and ..data a link to a dated folder."""

from __future__ import annotations

from pathlib import Path

from slipway_runtime.fetch.base import Budget, Fetched, Source, copy_file, tree_digest
from slipway_runtime.reasons import Failure


class ConfigMapSource(Source):
    """A mounted ConfigMap; its keys are file names."""

    def fetch(self, folder: Path) -> Fetched:
        """Copy each key, read through kubelet's two links and no other."""
        origin = self.settings.origin
        name = self.uri.partition("://")[2]
        keys = sorted(path for path in origin.iterdir() if not path.name.startswith("..")) if origin.is_dir() else []
        if not keys:
            raise Failure("SourceNotFound", f"the ConfigMap {name} does not exist or is empty")
        budget = Budget(self.settings.max_source_bytes)
        files = [(path.name, copy_file(self._real(path), folder / path.name, budget)) for path in keys]
        return Fetched(tree_digest(files), budget.used)

    def _real(self, path: Path) -> Path:
        real = path.resolve()
        if not real.is_relative_to(self.settings.origin.resolve()) or not real.is_file():
            raise Failure("ModelFolderInvalid", f"{path.name} is not a file of the ConfigMap")
        return real
