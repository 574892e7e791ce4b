"""BentoML as its documentation shows it."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType, Shape
from common import SHAPE, WORKERS, session

Tensor = Annotated[np.ndarray, DType("float32"), Shape((-1, *SHAPE))]


@bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Model:
    """The model."""

    def __init__(self):
        self.model = session()

    @bentoml.api(route="/predict")
    def predict(self, x: Tensor) -> np.ndarray:
        """Run."""
        return self.model.run(None, {"x": x})[0]
