"""The command `slipway-runtime`: one subcommand a container. Turns findings into exit codes and termination messages."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from slipway_runtime.reasons import Failure, write_termination
from slipway_runtime.settings import settings_from_environment

log = logging.getLogger("slipway")

_STEPS = {
    "fetch": "bring the model folder into the Job's pod",
    "convert": "build every candidate",
    "validate": "compare every candidate with the source model",
    "publish": "push the chosen candidate",
}
_WITH_ARGUMENTS = {
    "pull": ("pull", "bring an artifact into a serving pod"),
    "sample": ("validate.sample", "show what source and candidate make of one sample"),
    "serve": ("serve.main", "serve an artifact over HTTP"),
    "shadow": ("shadow.main", "compare the answers of two revisions to copies of requests"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code of the contract: 0, or that of the reason found.
    """
    parsed = _parser(sys.argv[1:] if arguments is None else arguments)
    if parsed.command in ("serve", "shadow"):
        return int(import_module(f"slipway_runtime.{parsed.command}.main").run(parsed))
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {parsed.command}: %(message)s", stream=sys.stderr)
    os.environ.setdefault("LOGNAME", "slipway")  # torch asks for the user's name, which uid 65532 does not have
    for name in ("onnx_ir", "onnxscript", "torch.onnx", "oras"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell each rewrite of the graph
    if parsed.command == "pull":
        return ended(lambda: import_module("slipway_runtime.pull").run(parsed))
    if parsed.command == "sample":
        module = import_module("slipway_runtime.validate.sample")
        return ended(lambda: module.run(settings_from_environment(), parsed.candidate, parsed.index))
    return ended(lambda: import_module(f"slipway_runtime.{parsed.command}").run(settings_from_environment()))


def ended(action: Callable[[], object]) -> int:
    """Run an action and return its exit code; a failure is logged and written as the termination message."""
    try:
        action()
    except Failure as failure:
        log.error("%s", failure)  # noqa: TRY400 - a finding about the model, not a bug: no traceback
        write_termination(failure.reason, failure.message, **failure.data)
        return failure.exit_code
    except Exception as error:
        log.exception("internal error")
        write_termination("InternalError", f"{type(error).__name__}: {error}")
        return 1
    return 0


def _parser(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="slipway-runtime", description="Slipway's model pipeline and inference server")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _STEPS.items():
        commands.add_parser(name, help=text, description=f"{text}; everything comes from the environment")
    for name, (module, text) in _WITH_ARGUMENTS.items():
        command = commands.add_parser(name, help=text)
        if name in arguments[:1]:  # only then: the client of the registry alone takes half a second to import
            import_module(f"slipway_runtime.{module}").add_arguments(command)
    return parser.parse_args(arguments)
