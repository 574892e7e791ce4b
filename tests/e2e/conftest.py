"""Fixtures of the e2e tests: the kind cluster, Slipway installed in it by its chart, a namespace per test."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from e2e.kit import CONTEXT, IMAGE_VALUES, ROOT, SYSTEM, Cluster, Namespace, drop_namespace, install, make_namespace


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of `make cluster`; another context is refused."""
    kubeconfig, images = ROOT / "build/kubeconfig", ROOT / "build/images.env"
    for needed in (kubeconfig, images):
        if not needed.exists():
            pytest.fail(f"{needed} is absent: run `make cluster images` first")
    context = yaml.safe_load(kubeconfig.read_text()).get("current-context")
    if context != CONTEXT:
        pytest.fail(f"{kubeconfig} points at {context}; these tests only touch {CONTEXT}")
    pairs = (line.removeprefix("export ").strip().partition("=") for line in images.read_text().splitlines() if "=" in line)
    return Cluster(kubeconfig, {key: value.strip("'\"") for key, _, value in pairs})


@pytest.fixture(scope="session")
def slipway(cluster: Cluster) -> Cluster:
    """The cluster with Slipway at the images of this tree."""
    if not _is_installed(cluster):
        install(cluster)
    return cluster


def _is_installed(cluster: Cluster) -> bool:
    wanted = {path: cluster.images[variable] for path, variable in IMAGE_VALUES.items()}
    releases = json.loads(cluster.helm("list", "-n", SYSTEM, "-o", "json").stdout or "[]")
    if not any(release["name"] == "slipway" and release["status"] == "deployed" for release in releases):
        return False
    values = json.loads(cluster.helm("get", "values", "slipway", "-n", SYSTEM, "-a", "-o", "json").stdout or "{}")
    return all((values.get(part) or {}).get(key) == image for (part, _, key), image in ((p.partition("."), i) for p, i in wanted.items()))


@pytest.fixture
def namespace(slipway: Cluster) -> Iterator[Namespace]:
    space = make_namespace(slipway)
    yield space
    drop_namespace(space)


@pytest.fixture(scope="session")
def quiet(slipway: Cluster) -> Iterator[Namespace]:
    """A namespace in which nothing changes while the other tests run."""
    space = make_namespace(slipway)
    yield space
    drop_namespace(space)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the quiet time begin first and be looked at after the other tests; what installs and removes the chart comes at the very end."""

    def place(item: pytest.Item) -> int:
        if "test_twenty_become_ready" in item.name:
            return 0
        if "test_nothing_is_written" in item.name:
            return 2
        return 3 if "test_chart" in str(item.path) else 1

    items.sort(key=place)


@pytest.fixture(scope="module")
def shared(slipway: Cluster) -> Iterator[Namespace]:
    """One namespace for all tests of a module."""
    space = make_namespace(slipway)
    yield space
    drop_namespace(space)
