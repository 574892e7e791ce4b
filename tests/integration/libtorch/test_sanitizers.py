"""The server built with AddressSanitizer and UBSan, and with ThreadSanitizer, under everything that clients do: no report, exit code 0."""

from __future__ import annotations

import io
import json
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from integration.libtorch.conftest import built, launch
from integration.libtorch.drafts import row_counter_draft
from integration.libtorch.test_server import binary_request
from integration.runtime.test_protocol import body_of, post
from unit.runtime.serve.artifacts import Draft, digits_draft, mlp_draft

pytestmark = [pytest.mark.nightly]

HERE = Path(__file__).parent
# Exit code 99 on any report; suppressions are for libtorch alone. torch's libraries are not instrumented, so containers cannot be checked
# across them.
OPTIONS = {
    "asan": {
        "ASAN_OPTIONS": "exitcode=99:detect_odr_violation=0:detect_container_overflow=0",
        "LSAN_OPTIONS": f"suppressions={HERE}/suppressions-asan.txt:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
    "tsan": {"TSAN_OPTIONS": f"exitcode=99:suppressions={HERE}/suppressions-tsan.txt:ignore_noninstrumented_modules=1:history_size=4"},
}


@pytest.fixture(params=["asan", "tsan"], scope="module")
def sanitized(request):
    return request.param, built(request.param)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(file, "PNG")
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(900, dtype=np.uint8).reshape(30, 30)).save(file, "JPEG")
    return file.getvalue()


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with some of them changed, and perhaps cut off."""
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.randint(len(changed) // 2, len(changed))])


def bodies(draft: str) -> list[tuple[bytes, tuple[str, ...], str]]:
    """Good requests of a model: body, headers, path."""
    if draft == "digits":
        form = b'--B\r\ncontent-disposition: form-data; name="image"\r\n\r\n%b\r\n--B--\r\n' % png()
        kinds = [(png(), "image/png"), (jpeg(), "image/jpeg"), (form, "multipart/form-data; boundary=B")]
        plain = json.dumps({"instances": np.zeros((2, 1, 8, 8)).tolist()}).encode()
        return [(data, (f"Content-Type: {kind}",), "/predict") for data, kind in kinds] + [(plain, (), "/predict")]
    width = 64 if draft == "mlp" else 2
    binary, length = binary_request({"x": ("FP32", np.ones((2, width), np.float32))}, parameters={"binary_data_output": True})
    infer = "/v2/models/m/infer"
    return [
        (body_of(1.0, 1, width), (), infer),
        (body_of(2.0, 3, width), (), infer),
        (binary, (f"Inference-Header-Content-Length: {length}",), infer),
        (body_of(1.0, 1, width), ("x-slipway-probe: golden",), infer),
    ]


def drafts() -> dict[str, tuple[Draft, tuple[str, ...]]]:
    return {
        "mlp": (mlp_draft(), ("--queue-size=8",)),
        "digits": (digits_draft(), ("--max-body-bytes=20000",)),
        "rows": (row_counter_draft(), ("--max-batch-size=8", "--max-delay=5ms", "--lanes=2", "--queue-size=8")),
    }


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["mlp", "digits", "rows"])
def test_no_report(sanitized, name, tmp_path):
    kind, program = sanitized
    draft, options = drafts()[name]
    server = launch(program, tmp_path, draft, *options, "--drain-seconds=0.5", env=OPTIONS[kind]).wait_ready(240)
    good = bodies(name)
    seen: set[bytes] = set()

    def client(seed: int) -> None:
        body, headers, path = good[seed % len(good)]
        match seed % 7:
            case 0:  # leaves without waiting
                with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                    connection.sendall(post(body, *headers, path=path))
            case 1:
                seen.add(server.raw(post(damaged(body, seed), "Connection: close", *headers, path=path), end=False)[:12])
            case 2:  # a damaged head: whatever comes back, it must not hang
                server.raw(damaged(post(body, "Connection: close", *headers, path=path), seed))
            case 3:
                seen.add(server.raw(post(body, *headers, path=path) + post(body, "Connection: close", *headers, path=path), end=False)[:12])
            case 4:
                for page in ("/metrics", "/docs", "/openapi.json", "/v2/models/m", "/v2/health/live", "/none"):
                    server.get(page)
            case _:
                seen.add(server.raw(post(body, "Connection: close", *headers, path=path), end=False)[:12])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(client, range(400)))
        assert server.process.poll() is None, server.log.read_text()
        late = [pool.submit(client, 5) for _ in range(8)]
        server.terminate()
        for one in late:
            one.exception(60)
    code = server.wait(120)
    log = server.log.read_text()
    if os.environ.get("SLIPWAY_KEEP_LOGS"):
        Path(os.environ["SLIPWAY_KEEP_LOGS"], f"{kind}-{name}.log").write_text(log)
    assert (code, "Sanitizer" in log, "runtime error" in log) == (0, False, False), log[-6000:]
    assert b"HTTP/1.1 200" in seen
