"""`oci://host[:port]/repo[:tag|@digest]`: an artifact with one layer a file, each checked against the manifest's digest."""

from __future__ import annotations

from pathlib import Path

from slipway_runtime.artifact import FileEntry, manifest_files
from slipway_runtime.fetch.base import Budget, Fetched, Source
from slipway_runtime.oci import SOURCE, Client, Manifest, parse_reference, read_docker_config
from slipway_runtime.reasons import Failure
from slipway_runtime.settings import Settings


class OciSource(Source):
    """An artifact in a registry; a tag is resolved once, everything after goes by digest."""

    def __init__(self, uri: str, settings: Settings) -> None:
        super().__init__(uri, settings)
        self._reference = parse_reference(uri.partition("://")[2])
        credentials = read_docker_config(settings.source_credentials, self._reference.host) or read_docker_config(
            settings.registry_credentials, self._reference.host
        )
        self._client = Client(self._reference, settings.plain_http, credentials, SOURCE)
        self._manifest: Manifest | None = None

    def resolve(self) -> str | None:
        """Return the manifest's digest."""
        return self._resolved().digest

    def fetch(self, folder: Path) -> Fetched:
        """Download every layer to the path its title names."""
        files = self._files()
        budget = Budget(self.settings.max_source_bytes)
        for file in files:  # before the first byte
            budget.add_file()
            budget.add(file.size)
        self._client.blob(str(self._resolved().value["config"]["digest"]))  # checked like the rest, then of no further use
        for file in files:
            self._client.download(f"sha256:{file.sha256}", file.size, folder / file.path)
        return Fetched(self._resolved().digest, budget.used)

    def _resolved(self) -> Manifest:
        if self._manifest is None:
            self._manifest = self._client.manifest(self._reference.reference)
        return self._manifest

    def _files(self) -> tuple[FileEntry, ...]:
        try:
            files = manifest_files(self._resolved().value)
        except (KeyError, TypeError, ValueError) as error:
            raise Failure("ModelFolderInvalid", f"{self._reference} is no model artifact, one layer a file: {error}") from error
        if not files:
            raise Failure("ModelFolderInvalid", f"{self._reference} has no files")
        return files
