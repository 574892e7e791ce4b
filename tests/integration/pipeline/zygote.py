"""Runs `slipway-runtime` subcommands in forks of one process that has torch loaded, so that a test takes no seconds to import it.

Reads lines of JSON {command, environment, log} on stdin, writes lines of JSON {code, seconds, peak} on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "torch.onnx._internal.exporter._core",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "slipway_runtime.convert.eager",
)


def main() -> None:
    for name in PRELOADED:
        import_module(name)
    warm_up()
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            serve(request)
        _, status, usage = os.wait4(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start, "peak": usage.ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)


def warm_up() -> None:
    """Fill the exporter's caches; OMP_NUM_THREADS=1 keeps this process free of threads, which a fork would lose."""
    import io  # noqa: PLC0415

    import torch  # noqa: PLC0415

    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 2)).eval()
    example = (torch.zeros(2, 1, 8, 8),)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(layers, example, io.BytesIO(), dynamo=True, dynamic_shapes=shapes, verbose=False)


def serve(request: dict) -> None:
    from slipway_runtime import cli  # noqa: PLC0415

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    os.chdir(Path(request["log"]).parent)
    code = cli.main(request["command"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
