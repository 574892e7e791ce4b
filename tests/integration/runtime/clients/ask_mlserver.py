"""Run in an environment with MLServer: its types and codecs over REST, its stub and converters over gRPC.

usage: ask_mlserver.py HTTP_PORT GRPC_PORT
"""

import json
import sys
import urllib.request

import grpc
import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2 import ModelMetadataRequest
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse

HTTP, GRPC = sys.argv[1:3]
X = np.arange(192, dtype=np.float32).reshape(3, 64) / 100
base = f"http://127.0.0.1:{HTTP}/v2/models/m"
asked = InferenceRequest(id="s1", inputs=[NumpyCodec.encode_input("x", X)])
answers = {}
with urllib.request.urlopen(base, timeout=60) as answer:
    answers["metadata"] = MetadataModelResponse.model_validate_json(answer.read()).name
post = urllib.request.Request(f"{base}/infer", asked.model_dump_json().encode(), {"Content-Type": "application/json"})
with urllib.request.urlopen(post, timeout=60) as answer:
    response = InferenceResponse.model_validate_json(answer.read())
answers["rest"] = [response.id, NumpyCodec.decode_output(response.outputs[0]).tolist()]
with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
    stub = GRPCInferenceServiceStub(channel)
    answers["grpc metadata"] = stub.ModelMetadata(ModelMetadataRequest(name="m")).name
    for raw in (False, True):
        message = ModelInferRequestConverter.from_types(asked, model_name="m", use_raw=raw)
        response = ModelInferResponseConverter.to_types(stub.ModelInfer(message))
        answers[f"grpc raw={raw}"] = [response.id, NumpyCodec.decode_output(response.outputs[0]).tolist()]
print(json.dumps(answers))
