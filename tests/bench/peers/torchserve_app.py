"""A handler for TorchServe, which is given JSON."""

import json
import os
import sys

import numpy as np

sys.path.insert(0, os.environ["PEERS"])
from common import session

MODEL = session()


def handle(data, context):
    """Answer the requests of a batch."""
    if not data:
        return None
    bodies = [row.get("body", row.get("data")) for row in data]
    values = [body if isinstance(body, dict) else json.loads(body) for body in bodies]
    return [{"y": MODEL.run(None, {"x": np.asarray(value["x"], np.float32)})[0].tolist()} for value in values]
