"""LitServe as its documentation shows it."""

import litserve
import numpy as np
from common import PORT, WORKERS, session


class Api(litserve.LitAPI):
    """The model."""

    def setup(self, device):
        """Load."""
        self.model = session()

    def decode_request(self, request):
        """To an array."""
        return np.asarray(request["x"], np.float32)

    def predict(self, x):
        """Run."""
        return self.model.run(None, {"x": x})[0]

    def encode_response(self, output):
        """To JSON."""
        return {"y": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
