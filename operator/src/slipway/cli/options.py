"""The options that every command takes, before or after its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from slipway.cli.kubectl import Cluster

P = ParamSpec("P")
R = TypeVar("R")
KEYS = ("kubeconfig", "context", "namespace")


def place_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add `--kubeconfig`, `--context` and `-n`."""
    function = click.option("-n", "--namespace", help="Namespace. Default: that of the context.")(function)
    function = click.option("--context", help="Context of the kubeconfig. Default: the current one.")(function)
    return click.option("--kubeconfig", type=click.Path(dir_okay=False), help="Default: $KUBECONFIG, then ~/.kube/config.")(function)


def with_cluster(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options and pass them on as `cluster`; what stands after the command's name wins."""

    @place_options
    @click.pass_context
    @wraps(function)
    def inner(ctx: click.Context, /, **options: Any) -> Any:
        before: Cluster = ctx.find_object(Cluster) or Cluster()
        given = {key: options.pop(key) or getattr(before, key) for key in KEYS}
        return function(cluster=Cluster(**given), **options)

    return inner
