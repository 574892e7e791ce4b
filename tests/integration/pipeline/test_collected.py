"""What a removed artifact looks like to the pipeline: pulling it fails by name, and its model is converted again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from integration.pipeline.conftest import Pipeline, RegistryProcess, start_registry
from slipway.plan.garbage import References, Tag, collect, is_read, mark_tag
from slipway.registry import Registry

pytestmark = [pytest.mark.slow]


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    running = start_registry(tmp_path_factory.mktemp("registry"), deletes=True)
    yield running
    running.process.kill()


async def test_a_removed_artifact_is_not_found_and_is_made_again(
    pipeline: Pipeline, claim: Callable[[Path], dict], model_folder: Path
) -> None:
    # the copy of the source, which takes the least time
    spec = {"model": claim(model_folder), "conversion": {"candidates": [{"target": "None", "precision": "Float32"}]}}
    first = pipeline.run(spec)
    assert first.reason == "Published", first.log
    digest, repository = first.message["artifactDigest"], pipeline.repository.partition("/")[2]
    pull = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(pipeline.work / "pulled")]
    async with aiohttp.ClientSession() as session:
        client = Registry(session, pipeline.plain_http, is_plain=True)
        found = {tag: await client.manifest(repository, tag) for tag in await client.tags(repository)}
        tags = [
            Tag(name, manifest.digest, manifest.artifact_type) if is_read(name) else Tag(name)
            for name, manifest in found.items()
            if manifest is not None
        ]
        companions = {digest.replace(":", "-"), digest.replace(":", "-") + ".att"}
        assert {tag.name for tag in tags} == {first.message["contentKey"], *companions}
        now = int(datetime.now(UTC).timestamp())
        plan = collect([*tags, Tag(mark_tag(digest, now - 10))], References(frozenset()), now, 10)
        assert [(removal.digest, set(removal.companions)) for removal in plan.remove] == [(digest, companions)]
        assert await client.delete(repository, digest)
    gone = pipeline.step(pull, spec, {})
    assert (gone.code, gone.reason) == (61, "ArtifactNotFound")
    again = pipeline.run(spec)
    assert again.reason == "Published", again.log
    assert again.message["contentKey"] == first.message["contentKey"]
    pull[4] = again.message["artifactDigest"]
    assert pipeline.step(pull, spec, {}).code == 0
