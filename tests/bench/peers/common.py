"""What all peers share: the same onnxruntime session, one thread a call. Told by the environment; runs in the peer's own environment."""

import json
import os

import onnxruntime

PORT = int(os.environ["PORT"])
WORKERS = int(os.environ["WORKERS"])
SHAPE = json.loads(os.environ["MODEL_SHAPE"])


def session():
    """The model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["MODEL_FILE"], options, providers=["CPUExecutionProvider"])
