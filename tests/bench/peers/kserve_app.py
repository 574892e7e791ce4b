"""A model for KServe's Python server."""

import argparse

import numpy as np
from common import session
from kserve import InferOutput, InferResponse, Model, ModelServer, model_server


class Ort(Model):
    """The model; with several workers it is pickled, so that it loads at the first call."""

    def __init__(self):
        super().__init__("m")
        self.model, self.ready = None, True

    def predict(self, payload, headers=None, response_headers=None):
        """Run."""
        self.model = self.model or session()
        y = self.model.run(None, {"x": payload.inputs[0].as_numpy().astype(np.float32, copy=False)})[0]
        output = InferOutput("y", list(y.shape), "FP32", data=y)
        binary = payload.use_binary_outputs
        if payload.from_grpc:  # over REST the answer encodes it as the request asked
            output.set_data_from_numpy(y, binary_data=binary)
        return InferResponse(payload.id or "0", "m", [output], use_binary_outputs=binary, requested_outputs=payload.request_outputs)


if __name__ == "__main__":
    arguments, _ = argparse.ArgumentParser(parents=[model_server.parser]).parse_known_args()
    ModelServer(workers=arguments.workers, enable_latency_logging=False).start([Ort()])
