"""What a user writes first: FastAPI, pydantic, a plain handler, uvicorn."""

import numpy as np
from common import session
from fastapi import FastAPI
from pydantic import BaseModel

app, model = FastAPI(), session()


class Sample(BaseModel):
    """A batch."""

    x: list


@app.post("/predict")
def predict(sample: Sample):
    """Answer a batch."""
    return {"y": model.run(None, {"x": np.asarray(sample.x, np.float32)})[0].tolist()}
