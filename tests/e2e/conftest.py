"""Fixtures of the e2e tests: the kind cluster, Slipway installed in it by its chart, a namespace per test.

Files of tests run side by side (`make e2e`: pytest-xdist, `--dist loadfile`), because most of their time they wait. A test marked `alone`
takes something away that the others need, and waits until they have paused; `last` ones run after all others, by a command of their own.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from e2e.kit import CONTEXT, IMAGE_VALUES, ROOT, SYSTEM, Cluster, Namespace, drop_namespace, images, install, make_namespace


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of `make cluster`; another context is refused."""
    kubeconfig = ROOT / "build/kubeconfig"
    for needed in (kubeconfig, ROOT / "build/images.env"):
        if not needed.exists():
            pytest.fail(f"{needed} is absent: run `make cluster images` first")
    context = yaml.safe_load(kubeconfig.read_text()).get("current-context")
    if context != CONTEXT:
        pytest.fail(f"{kubeconfig} points at {context}; these tests only touch {CONTEXT}")
    return Cluster(kubeconfig, images())


@pytest.fixture(scope="session")
def slipway(cluster: Cluster) -> Cluster:
    """The cluster with Slipway at the images of this tree."""
    with _locked(ROOT / "build/e2e-install.lock", fcntl.LOCK_EX):
        if not _is_installed(cluster):
            install(cluster)
    return cluster


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, how)
        yield


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test that is marked `alone` run while no other does, and one marked `unhurried` besides any; their timeouts begin then."""
    if item.get_closest_marker("unhurried"):
        yield
        return
    with _locked(ROOT / "build/e2e.lock", fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH):
        yield


def _is_installed(cluster: Cluster) -> bool:
    wanted = {path: cluster.images[variable] for path, variable in IMAGE_VALUES.items()}
    releases = json.loads(cluster.helm("list", "-n", SYSTEM, "-o", "json").stdout or "[]")
    if not any(release["name"] == "slipway" and release["status"] == "deployed" for release in releases):
        return False
    values = json.loads(cluster.helm("get", "values", "slipway", "-n", SYSTEM, "-a", "-o", "json").stdout or "{}")
    if not (values.get("prePull") or {}).get("enabled"):
        return False
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
    """Begin with the quiet time, and end with what nothing else can run beside."""

    def place(item: pytest.Item) -> int:
        if "test_quiet" in str(item.path):
            return 0
        # a worker that has begun with the file of the faults waits there until all others pause
        is_late = item.get_closest_marker("alone") or item.get_closest_marker("last") or "test_operator_faults" in str(item.path)
        return 2 if is_late else 1

    items.sort(key=place)


@pytest.fixture(scope="module")
def shared(slipway: Cluster) -> Iterator[Namespace]:
    """One namespace for all tests of a module."""
    space = make_namespace(slipway)
    yield space
    drop_namespace(space)
