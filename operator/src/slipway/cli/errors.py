"""The one error users of the command line see: what is wrong, where, and the next step, on one line."""

from __future__ import annotations

from typing import IO, Any

import click


class CliError(click.ClickException):
    """Something outside the command line itself is wrong; exit code 1 (usage errors are click's, exit code 2)."""

    exit_code = 1

    def __init__(self, what: str, next_step: str = "") -> None:
        """Take what is wrong and where, and what to do about it."""
        text = " ".join(what.split()).rstrip(".")
        super().__init__(f"{text}. Next: {next_step}" if next_step else text)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line to stderr."""
        click.echo(f"error: {self.message}", err=True, file=file)
