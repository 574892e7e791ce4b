"""The cluster as the command line sees it: through the user's own kubectl.

kubectl already knows every way to log in to a cluster, and a plugin should reach the same one as the command it extends.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from slipway.cli.errors import CliError

TIMEOUT_SECONDS = 60
FORWARD_SECONDS = 30
_FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster and namespace the user means; None leaves the choice to kubectl."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return a kubectl command line.

        Raises:
            CliError: there is no kubectl.
        """
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise CliError("kubectl is not on the PATH", "install kubectl, or put build/bin on the PATH")
        flags = [("--kubeconfig", self.kubeconfig), ("--context", self.context)]
        return [kubectl, *(part for flag, value in flags if value for part in (flag, value)), *arguments]

    def in_namespace(self, *arguments: str) -> tuple[str, ...]:
        """Return arguments with the namespace, when one was given."""
        return (*arguments, "-n", self.namespace) if self.namespace else arguments

    def find(self, *arguments: str) -> dict[str, Any] | None:
        """Run `kubectl get … -o json`; None when the one object that was named does not exist.

        Raises:
            CliError: the cluster does not answer or refuses.
        """
        done = self._run("get", *self.in_namespace(*arguments), "-o", "json", "--ignore-not-found")
        return dict(json.loads(done)) if done.strip() else None

    def items(self, *arguments: str) -> list[Mapping[str, Any]]:
        """Run `kubectl get` for a list."""
        return list((self.find(*arguments) or {}).get("items", ()))

    def raw(self, path: str) -> str:
        """Run `kubectl get --raw` with a path of the API server.

        Raises:
            CliError: the cluster, or what is behind the path, does not answer or refuses.
        """
        return self._run("get", "--raw", path)

    def patch(self, kind: str, name: str, patch: Sequence[Mapping[str, Any]]) -> None:
        """Run `kubectl patch` with a JSON patch (RFC 6902).

        Raises:
            CliError: the cluster does not answer or refuses, or the object changed in between.
        """
        self._run("patch", *self.in_namespace(kind, name), "--type=json", "-p", json.dumps(list(patch)))

    def _run(self, *arguments: str) -> str:
        command = self.command(*arguments)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise CliError(f"kubectl {arguments[0]} did not answer within {TIMEOUT_SECONDS} s", "check `kubectl cluster-info`") from error
        if done.returncode != 0:
            raise CliError(f"kubectl {' '.join(arguments[:2])}: {explained(done.stderr)}", _advice(done.stderr))
        return done.stdout

    @contextmanager
    def forward(self, namespace: str | None, service: str, port: int) -> Iterator[str]:
        """Open a tunnel to a Service and yield its local `host:port`; the child process ends with the block.

        Raises:
            CliError: there is no such Service, or no ready pod behind it.
        """
        place = ("-n", namespace) if namespace else self.in_namespace()
        command = self.command("port-forward", *place, "--address", "127.0.0.1", f"service/{service}", f":{port}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield f"127.0.0.1:{_local_port(process, service)}"
            finally:
                process.terminate()


def _local_port(process: subprocess.Popen[str], service: str) -> str:
    if process.stdout is None or process.stderr is None:
        raise AssertionError("both are pipes")
    watchdog = threading.Timer(FORWARD_SECONDS, process.terminate)
    watchdog.start()
    try:
        found = _FORWARDED.search(process.stdout.readline())
    finally:
        watchdog.cancel()
    if found is None:
        process.terminate()
        said = process.stderr.read() or f"no answer within {FORWARD_SECONDS} s"
        slices = f"kubectl get endpointslices -l kubernetes.io/service-name={service}"
        is_absent = "not found" in said
        advice = "check its name and namespace: kubectl get services -A" if is_absent else f"see whether it has ready pods: {slices}"
        raise CliError(f"no tunnel to service/{service}: {explained(said)}", advice)
    # kubectl writes a line for each connection; a pipe that nobody reads would fill up and stop it
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=_drain, args=(stream,), daemon=True).start()
    return found[1]


def _drain(stream: IO[str]) -> None:
    for _ in stream:
        pass


def explained(stderr: str) -> str:
    """Return the last line that kubectl wrote, without its prefix."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()] or ["no explanation"]
    return re.sub(r"^(error: |Error from server( \(\w+\))?: )", "", lines[-1])[:400]


def _advice(stderr: str) -> str:
    if "the server doesn't have a resource type" in stderr:
        return "install Slipway's chart, which brings the CRDs"
    if "Forbidden" in stderr or "forbidden" in stderr:
        return "ask for read access to the slipway.dev resources, Deployments and Pods of this namespace"
    return "check --kubeconfig and --context with `kubectl cluster-info`"
