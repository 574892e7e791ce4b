"""Runs `slipway-runtime`, or the operator, in forks of one process that has imported what it needs, which takes seconds.

Listens on a Unix socket. A client sends a line of JSON {command, environment, log, folder} and gets two: {pid} when the command has begun,
and {code, seconds, peak} when it has ended.   usage: zygote.py runtime|operator SOCKET PID, and it ends when the process PID has.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from importlib import import_module

PRELOADED = {
    "operator": ("slipway.main",),
    "runtime": (
        "torch",
        "torch._dynamo",
        "torch.export",
        "torch.onnx._internal.exporter._core",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "pyseccomp",
        "slipway_runtime.convert.eager",
        "slipway_runtime.publish",
        "slipway_runtime.serve.main",
        "slipway_runtime.validate.gate",
        "slipway_runtime.validate.measure",
    ),
}


def main(kind: str, path: str, owner: int) -> None:
    for name in PRELOADED[kind]:
        import_module(name)
    if kind == "runtime":
        warm_up()
    gc.freeze()  # a collection in a fork would copy all that is loaded
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the handlers
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(64)
        listener.settimeout(1)
        os.rename(path + ".new", path)  # whoever finds the socket can connect
        while os.path.exists(f"/proc/{owner}"):
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                handle(client, kind)
            client.close()
    for left in (path, path + ".lock"):
        os.unlink(left)


def warm_up() -> None:
    """Fill the exporter's caches; OMP_NUM_THREADS=1 keeps this process free of threads, which a fork would lose."""
    import io  # noqa: PLC0415

    import torch  # noqa: PLC0415

    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()
    example = (torch.zeros(2, 1, 8, 8),)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(layers, example, io.BytesIO(), dynamo=True, dynamic_shapes=shapes, verbose=False)


def handle(client: socket.socket, kind: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with client.makefile("rw") as stream:
        request = json.loads(stream.readline())
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(client.fileno())
            run(request, kind)
        say(stream, {"pid": child})
        _, status, usage = os.wait4(child, 0)
        say(stream, {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start, "peak": usage.ru_maxrss * 1024})
    os._exit(0)


def say(stream, answer: dict) -> None:
    try:
        print(json.dumps(answer), file=stream, flush=True)
    except BrokenPipeError:
        os._exit(0)


def run(request: dict, kind: str) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    try:
        code = begin(kind, request["command"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def begin(kind: str, command: list[str]) -> int:
    if kind == "operator":
        from kubernetes.aio.config import kube_config  # noqa: PLC0415

        from slipway.main import main as operate  # noqa: PLC0415

        kube_config.KUBE_CONFIG_DEFAULT_LOCATION = os.environ["KUBECONFIG"]  # read when it was imported
        operate()
        return 0
    from slipway_runtime import cli  # noqa: PLC0415

    return cli.main(command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
