"""`slipway`, also installed as `kubectl slipway`: push a model, see what would happen, what happens, and ask the model.

Commands read a cluster; those of a rollout patch the one resource that they name.
"""

from __future__ import annotations

import click

from slipway.cli.experiment import experiment
from slipway.cli.kubectl import Cluster
from slipway.cli.options import place_options
from slipway.cli.plan import plan
from slipway.cli.predict import predict
from slipway.cli.push import push
from slipway.cli.report import report
from slipway.cli.rollout import COMMANDS
from slipway.cli.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="slipway", prog_name="slipway")
@place_options
@click.pass_context
def main(ctx: click.Context, /, kubeconfig: str | None, context: str | None, namespace: str | None) -> None:
    """From a PyTorch checkpoint to production on Kubernetes."""
    ctx.obj = Cluster(kubeconfig, context, namespace)


for command in (push, status, report, plan, predict, experiment, *COMMANDS):
    main.add_command(command)
