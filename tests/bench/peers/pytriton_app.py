"""PyTriton as its documentation shows it; it joins requests to batches only if told, as for the others that is off by default."""

import os
import signal
import sys
import sysconfig
import tempfile

import numpy as np
from common import PORT, SHAPE, WORKERS, session
from pytriton.decorators import batch, sample
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

BATCH = int(os.environ.get("BATCH", "0"))
ROWS = () if BATCH else (-1,)  # with batches, Triton adds the first dimension itself


def instance():
    """A model of its own for each instance; each has a thread."""
    model = session()

    def infer(x):
        return {"y": model.run(None, {"x": x})[0]}

    return batch(infer) if BATCH else sample(infer)


if __name__ == "__main__":
    # Its stub loads libpython; the system's does not fit the standard library of this Python.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that it ends its server and removes its shared memory
    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, grpc_address="127.0.0.1", grpc_port=PORT + 1, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config, workspace=f"{tempfile.mkdtemp()}/w") as triton:
        triton.bind(
            model_name="m",
            infer_func=[instance() for _ in range(WORKERS)],
            inputs=[Tensor(name="x", dtype=np.float32, shape=(*ROWS, *SHAPE))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=(*ROWS, 10))],
            config=ModelConfig(max_batch_size=BATCH) if BATCH else ModelConfig(batching=False),
        )
        triton.serve()
