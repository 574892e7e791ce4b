"""`pvc://CLAIM/path`: the claim is mounted read-only; the path must stay inside it, whatever links other writers put there."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from slipway_runtime.artifact import safe_path
from slipway_runtime.fetch.base import Budget, Fetched, Source, copy_file, copy_tree, tree_digest
from slipway_runtime.reasons import Failure


class ClaimSource(Source):
    """A folder, or one file, of a mounted PersistentVolumeClaim."""

    def fetch(self, folder: Path) -> Fetched:
        """Copy the folder, or the one file."""
        path = self._path()
        budget = Budget(self.settings.max_source_bytes)
        try:
            if path.is_dir():
                fetched = copy_tree(path, folder, budget)
                if not budget.files:
                    raise Failure("SourceNotFound", f"{self.uri} is an empty folder")
                return fetched
            return Fetched(tree_digest([(path.name, copy_file(path, folder / path.name, budget))]), budget.used)
        except PermissionError as error:
            raise Failure("CredentialsRejected", f"the claim does not let this user read {error.filename}") from error

    def _path(self) -> Path:
        claim, _, relative = self.uri.partition("://")[2].partition("/")
        path = self.settings.origin
        try:
            parts = safe_path(unquote(relative).strip("/")).split("/") if relative.strip("/") else []
        except ValueError as error:
            raise Failure("ModelFolderInvalid", f"{self.uri}: {error}") from error
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise Failure("ModelFolderInvalid", f"{part} in the claim {claim} is a link, which is not followed")
        if not path.exists():
            raise Failure("SourceNotFound", f"there is no {relative or 'volume'} in the claim {claim}")
        return path
