"""Run in an environment with KServe's package: its REST and gRPC clients, unchanged. usage: ask_kserve.py HTTP_PORT GRPC_PORT"""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

HTTP, GRPC = sys.argv[1:3]
X = np.arange(192, dtype=np.float32).reshape(3, 64) / 100


def request(*, binary):
    item = InferInput("x", list(X.shape), "FP32")
    item.set_data_from_numpy(X, binary_data=binary)
    return InferRequest("m", [item], request_id="k1")


async def main():
    answers = {}
    base = f"http://127.0.0.1:{HTTP}"
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    answers["live"] = await rest.is_server_live(base)
    answers["ready"] = await rest.is_server_ready(base)
    answers["model"] = await rest.is_model_ready(base, "m")
    for binary in (True, False):
        response = await rest.infer(base, request(binary=binary), model_name="m")
        answers[f"rest binary={binary}"] = [response.id, response.outputs[0].as_numpy().tolist()]
    v1 = InferenceRESTClient(RESTConfig(protocol="v1", timeout=60))
    answers["v1"] = (await v1.infer(base, {"instances": X.tolist()}, model_name="m"))["predictions"]
    grpc = InferenceGRPCClient(f"127.0.0.1:{GRPC}", timeout=60)
    answers["grpc ready"] = await grpc.is_model_ready("m")
    for binary in (True, False):
        response = await grpc.infer(request(binary=binary))
        answers[f"grpc binary={binary}"] = [response.id, response.outputs[0].as_numpy().tolist()]
    print(json.dumps(answers))


asyncio.run(main())
