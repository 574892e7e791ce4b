"""A runtime for MLServer; its two settings files are written by the bench."""

import numpy as np
from common import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Ort(MLModel):
    """The model."""

    async def load(self):
        """Load."""
        self.model = session()
        return True

    async def predict(self, payload):
        """Run."""
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", self.model.run(None, {"x": x})[0])])
