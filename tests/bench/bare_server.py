"""A yardstick: the least Python that answers an infer request. asyncio.Protocol, httptools, uvloop, orjson, onnxruntime on the event loop.

No limits, no timeouts, no validation, no metrics, no queue: what our server costs beyond this is what those cost.
  usage: bare_server.py MODEL.onnx PORT
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import numpy as np
import onnxruntime
import orjson
import uvloop


class Bare(asyncio.Protocol):
    """One connection."""

    session: onnxruntime.InferenceSession

    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.json_bytes, self.body = 0, []

    def on_header(self, name, value):
        if len(name) == 31:
            self.json_bytes = int(value)

    def on_body(self, body):
        self.body.append(body)

    def on_message_complete(self):
        body, length = b"".join(self.body), self.json_bytes
        head = orjson.loads(body[:length] if length else body)["inputs"][0]
        x = np.frombuffer(body, "<f4", offset=length) if length else np.array(head["data"], "f4")
        y = self.session.run(None, {"x": x.reshape(head["shape"])})[0]
        tensor = {"name": "y", "shape": y.shape, "datatype": "FP32"}
        if length:
            tensor["parameters"] = {"binary_data_size": y.nbytes}
            text = orjson.dumps({"model_name": "m", "outputs": [tensor]})
            kind, answer = b"application/octet-stream\r\ninference-header-content-length: %d" % len(text), text + y.tobytes()
        else:
            text = {"model_name": "m", "outputs": [tensor | {"data": y.ravel()}]}
            kind, answer = b"application/json", orjson.dumps(text, option=orjson.OPT_SERIALIZE_NUMPY)
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(answer), answer))


async def main():
    """Serve until killed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    Bare.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", int(sys.argv[2]))
    await server.serve_forever()


uvloop.run(main())
