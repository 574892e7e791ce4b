"""Requests as KServe's and Triton's documentation prints them, the answers it prints for them, and models that give those answers.

Where a page contradicts itself, what was put right stands at the row.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from unit.runtime.serve.artifacts import Draft

Arrays = Mapping[str, np.ndarray]
JSON = "application/json"
OCTETS = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"  # what curl sends with --data when nobody tells it otherwise; the pages do not


@dataclass
class Exchange:
    """An HTTP request and its answer, as a page of documentation has them.

    Attributes:
        page: where they are printed.
        path: of the request; {model} is where the model's name goes.
        model: that name.
        draft: makes a model that answers so.
        request: the JSON that the page prints.
        answer: the JSON that the page prints, but for the id that a server makes up.
        content_type: of the request.
        version: the model version that the page has in its answer.
        tensors: what follows the request's JSON, one after the other.
        raw: the outputs whose data follow the answer's JSON, in their order.
    """

    page: str
    path: str
    model: str
    draft: Callable[[], Draft]
    request: str
    answer: dict[str, Any]
    content_type: str = JSON
    version: str = "1"
    tensors: list[np.ndarray] = field(default_factory=list)
    raw: dict[str, np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.page


@dataclass
class Call:
    """A gRPC call and its answer in the JSON of protocol buffers, as a page of documentation prints them for grpcurl.

    Attributes:
        page: where they are printed.
        model: name of the model.
        draft: makes a model that answers so.
        method: of GRPCInferenceService.
        request: what the page sends.
        answer: what the page gets, but for the id that a server makes up.
        version: the model version that the page has in its answer; None where it has none.
    """

    page: str
    model: str
    draft: Callable[[], Draft]
    method: str
    request: dict[str, Any]
    answer: dict[str, Any]
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.page} {self.method}"


def _model(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], graph: Any, **config: Any) -> Draft:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    signature = {"inputs": inputs, "outputs": outputs}
    return Draft({"model.onnx": model}, {"format": "ONNX", "entry": "model.onnx", "signature": signature, **config})


def _value(name: str, dtype: Any, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def answering(inputs: Arrays, outputs: Arrays, **config: Any) -> Draft:
    """A model of fixed shapes that gives these outputs for these inputs, and others when an element of an input is another.

    The pages say "assuming the model returns": this is that model. How far the inputs are from those expected is added to all outputs.
    """
    nodes, weights = [], []
    for name, array in inputs.items():
        weights.append(numpy_helper.from_array(array.astype(np.float64), f"{name}_wanted"))
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_number"], to=TensorProto.DOUBLE),
            helper.make_node("Sub", [f"{name}_number", f"{name}_wanted"], [f"{name}_difference"]),
            helper.make_node("Abs", [f"{name}_difference"], [f"{name}_distance"]),
            helper.make_node("ReduceSum", [f"{name}_distance"], [f"{name}_error"], keepdims=0),
        ]
    nodes.append(helper.make_node("Sum", [f"{name}_error" for name in inputs], ["error"]))
    for name, array in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        weights.append(numpy_helper.from_array(array, f"{name}_answer"))
        nodes += [
            helper.make_node("Cast", ["error"], [f"{name}_error"], to=kind),
            helper.make_node("Add", [f"{name}_answer", f"{name}_error"], [name]),
        ]
    sides = [[_value(name, array.dtype, list(array.shape)) for name, array in side.items()] for side in (inputs, outputs)]
    specs = [
        [{"name": name, "dtype": str(array.dtype), "shape": list(array.shape)} for name, array in side.items()]
        for side in (inputs, outputs)
    ]
    return _model(*specs, helper.make_graph(nodes, "documented", *sides, weights), **config)


def iris(output: str, dtype: str) -> Draft:
    """The model of KServe's pages, trained as they train it: a support vector machine on the iris data, [batch, 4] -> [batch] classes."""
    from sklearn import datasets, svm  # noqa: PLC0415 - half a second, which every worker that only collects tests would pay

    bunch = datasets.load_iris()
    fitted = svm.SVC(gamma="scale").fit(bunch.data, bunch.target)
    machine = helper.make_node(
        "SVMClassifier",
        ["input-0"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_ints=fitted.classes_.tolist(),
        coefficients=fitted.dual_coef_.ravel().tolist(),
        kernel_params=[float(fitted._gamma), 0.0, 3.0],
        kernel_type="RBF",
        post_transform="NONE",
        rho=fitted.intercept_.tolist(),
        support_vectors=fitted.support_vectors_.ravel().tolist(),
        vectors_per_class=fitted.n_support_.tolist(),
    )
    cast = helper.make_node("Cast", ["label"], [output], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    sides = [_value("input-0", np.float32, ["n", 4])], [_value(output, dtype, ["n"])]
    inputs = [{"name": "input-0", "dtype": "float32", "shape": ["batch", 4]}]
    outputs = [{"name": output, "dtype": dtype, "shape": ["batch"]}]
    return _model(inputs, outputs, helper.make_graph([machine, cast], "iris", *sides))


INFER, PREDICT = "/v2/models/{model}/infer", "/v1/models/{model}:predict"
FOUR, THREE = np.array([[1, 2], [3, 4]], np.uint32), np.array([True, True, True])
SIX = np.array([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], np.float32)
HALF = np.array([[1.1, 2.22], [3.345, 4.34343]], np.float16)
TABLE = np.array([[1.203, 5.403], [3.434, 34.234]], np.float32)
SCORES = np.array([1.1, 3.3, 0.5, 2.4], np.float32)
LABELS = [f"index_{i}_label" for i in range(4)]
LOGITS = [
    -2.0964810848236086,
    -0.13700756430625916,
    -0.5095657706260681,
    2.795621395111084,
    -0.5605481863021851,
    1.9934231042861938,
    1.1288187503814698,
    -1.4043136835098267,
    0.6004879474639893,
    -2.1237082481384277,
]
RAW_LOGITS = "wCwGwOJLDL7icgK/dusyQAqAD799KP8/In2QP4zAs7+WuRk/2OoHwA=="
IMAGE = np.linspace(-1, 1, 3072, dtype=np.float32).reshape(1, 3, 32, 32)  # the page only links to its own
IRIS = """{
  "inputs": [
    {
      "name": "input-0",
      "shape": [2, 4],
      "datatype": "FP32",
      "data": [
        [6.8, 2.8, 4.8, 1.4],
        [6.0, 3.4, 4.5, 1.6]
      ]
    }
  ]
}
"""
IRIS_V1 = """{
  "instances": [
    [6.8,  2.8,  4.8,  1.4],
    [6.0,  3.4,  4.5,  1.6]
  ]
}
"""
PLAIN = """{
  "id" : "42",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "data" : [ 1, 2, 3, 4 ]
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "data" : [ true, true, true ]
    }
  ],
  "outputs" : [
    {
      "name" : "output0"
    }
  ]
}
"""
BINARY = """{
  "model_name" : "mymodel",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "parameters" : {
        "binary_data_size" : 16
      }
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "parameters" : {
        "binary_data_size" : 3
      }
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : {
        "binary_data" : true
      }
    }
  ]
}
"""
MIXED = """{
  "model_name" : "mymodel",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "FP16",
      "parameters" : {
        "binary_data_size" : 8
      }
    },
    {
      "name" : "input1",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "data": [[1, 2], [3, 4]]
    },
    {
      "name" : "input2",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "parameters" : {
        "binary_data_size" : 3
      }
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : {
        "binary_data" : true
      }
    },
    {
      "name" : "output1"
    }
  ]
}
"""
ALL_BINARY = """{
  "model_name": "my_model",
  "inputs": [
    {
      "name": "input_tensor",
      "datatype": "FP32",
      "shape": [1, 2],
      "data": [[32.045, 399.043]]
    }
  ],
  "parameters": {
     "binary_data_output": true
  }
}
"""
CLASSIFICATION = """{
  "id" : "42",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "data" : [ 1, 2, 3, 4 ]
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : { "classification" : 2 }
    }
  ]
}
"""
PARAMETERS = """{
  "parameters" : { "my_custom_parameter" : 42 },
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "data" : [ 1, 2, 3, 4 ]
    }
  ],
  "outputs" : [
    {
      "name" : "output0"
    }
  ]
}
"""


def _output(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


def _binary(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return _output(name, datatype, shape, parameters={"binary_data_size": size})


ONE_CLASS = partial(answering, {"input0": FOUR}, {"output0": SCORES})
EXCHANGES = [
    Exchange(
        "kserve get_started/first_isvc",
        PREDICT,
        "sklearn-iris",
        partial(iris, "predict", "int64"),
        IRIS_V1,
        {"predictions": [1, 1]},
        content_type=FORM,
    ),
    Exchange(
        "kserve modelserving/v1beta1/sklearn/v2",
        INFER,
        "sklearn-v2-iris",
        partial(iris, "predict", "int64"),
        IRIS,
        {"outputs": [_output("predict", "INT64", [2], data=[1, 1])]},
        version="v1.0.0",
    ),
    Exchange(
        "kserve modelserving/v1beta1/triton/torchscript",
        INFER,
        "cifar10",
        partial(answering, {"INPUT__0": IMAGE}, {"OUTPUT__0": np.array([LOGITS], np.float32)}),
        json.dumps({"inputs": [_output("INPUT__0", "FP32", [1, 3, 32, 32], data=IMAGE.tolist())]}),
        {"outputs": [_output("OUTPUT__0", "FP32", [1, 10], data=LOGITS)]},
        content_type=FORM,
    ),
    Exchange(  # it prints [ true ] for a shape of [ 3 ]
        "kserve modelserving/data_plane/v2_protocol",
        INFER,
        "mymodel",
        partial(answering, {"input0": FOUR, "input1": THREE}, {"output0": SIX}),
        PLAIN,
        {"id": "42", "outputs": [_output("output0", "FP32", [3, 2], data=[1.0, 1.1, 2.0, 2.1, 3.0, 3.1])]},
    ),
    Exchange(  # it prints 16 bytes for four numbers of FP16, and for six
        "kserve modelserving/data_plane/binary_tensor_data_extension, mixed",
        INFER,
        "mymodel",
        partial(answering, {"input0": HALF, "input1": FOUR, "input2": THREE}, {"output0": SIX.astype(np.float16), "output1": TABLE}),
        MIXED,
        {"outputs": [_binary("output0", "FP16", [3, 2], 12), _output("output1", "FP32", [2, 2], data=TABLE.ravel().tolist())]},
        content_type=OCTETS,
        tensors=[HALF, THREE],
        raw={"output0": SIX.astype(np.float16)},
    ),
    Exchange(  # it prints a comma too much, 16 bytes for six numbers of FP16 and 32 for four of FP32
        "kserve modelserving/data_plane/binary_tensor_data_extension, all outputs",
        INFER,
        "mymodel",
        partial(
            answering,
            {"input_tensor": np.array([[32.045, 399.043]], np.float32)},
            {"output_tensor0": SIX.astype(np.float16), "output_tensor1": TABLE},
        ),
        ALL_BINARY,
        {"outputs": [_binary("output_tensor0", "FP16", [3, 2], 12), _binary("output_tensor1", "FP32", [2, 2], 16)]},
        raw={"output_tensor0": SIX.astype(np.float16), "output_tensor1": TABLE},
    ),
    Exchange(
        "triton protocol/extension_binary_data",
        INFER,
        "mymodel",
        partial(answering, {"input0": FOUR, "input1": THREE}, {"output0": SIX}),
        BINARY,
        {"outputs": [_binary("output0", "FP32", [3, 2], 24)]},
        content_type=OCTETS,
        tensors=[FOUR, THREE],
        raw={"output0": SIX},
    ),
    Exchange(  # its example has the datatype STRING, its text BYTES, which is the protocol's word
        "triton protocol/extension_classification",
        INFER,
        "mymodel",
        ONE_CLASS,
        CLASSIFICATION,
        {"id": "42", "outputs": [_output("output0", "BYTES", [2], data=["3.3:1", "2.4:3"])]},
    ),
    Exchange(
        "triton protocol/extension_classification, labels",
        INFER,
        "mymodel",
        partial(answering, {"input0": FOUR}, {"output0": SCORES}, labels=LABELS),
        CLASSIFICATION,
        {"id": "42", "outputs": [_output("output0", "BYTES", [2], data=["3.3:1:index_1_label", "2.4:3:index_3_label"])]},
    ),
    Exchange(  # it prints a comma too few and one too much, and no answer: that of the same model without the parameter
        "triton protocol/extension_parameters",
        INFER,
        "mymodel",
        ONE_CLASS,
        PARAMETERS,
        {"outputs": [_output("output0", "FP32", [4], data=SCORES.tolist())]},
    ),
]
CALLS = [
    Call(
        "kserve modelserving/v1beta1/sklearn/v2",
        "sklearn-v2-iris-grpc",
        partial(iris, "output-0", "int32"),
        "ServerReady",
        {},
        {"ready": True},
    ),
    Call(
        "kserve modelserving/v1beta1/sklearn/v2",
        "sklearn-v2-iris-grpc",
        partial(iris, "output-0", "int32"),
        "ModelInfer",
        {
            "model_name": "sklearn-v2-iris-grpc",
            "inputs": [
                {
                    "name": "input-0",
                    "shape": [2, 4],
                    "datatype": "FP32",
                    "contents": {"fp32_contents": [6.8, 2.8, 4.8, 1.4, 6.0, 3.4, 4.5, 1.6]},
                }
            ],
        },
        {
            "modelName": "sklearn-v2-iris-grpc",
            "outputs": [{"name": "output-0", "datatype": "INT32", "shape": ["2"], "contents": {"intContents": [1, 1]}}],
        },
    ),
    Call(  # the page only links to its request: raw, as its answer
        "kserve modelserving/v1beta1/triton/torchscript",
        "cifar10",
        partial(answering, {"INPUT__0": IMAGE}, {"OUTPUT__0": np.frombuffer(base64.b64decode(RAW_LOGITS), np.float32).reshape(1, 10)}),
        "ModelInfer",
        {
            "model_name": "cifar10",
            "inputs": [{"name": "INPUT__0", "shape": [1, 3, 32, 32], "datatype": "FP32"}],
            "raw_input_contents": [base64.b64encode(IMAGE.tobytes()).decode()],
        },
        {
            "modelName": "cifar10",
            "modelVersion": "1",
            "outputs": [{"name": "OUTPUT__0", "datatype": "FP32", "shape": ["1", "10"]}],
            "rawOutputContents": [RAW_LOGITS],
        },
        version="1",
    ),
    Call(  # it prints a version of -1 where the protocol has a string, and int_contents for UINT32
        "triton protocol/extension_classification",
        "mymodel",
        ONE_CLASS,
        "ModelInfer",
        {
            "model_name": "mymodel",
            "inputs": [{"name": "input0", "shape": [2, 2], "datatype": "UINT32", "contents": {"uint_contents": [1, 2, 3, 4]}}],
            "outputs": [{"name": "output0", "parameters": {"classification": {"int64_param": 2}}}],
        },
        {
            "modelName": "mymodel",
            "outputs": [
                {
                    "name": "output0",
                    "shape": ["2"],
                    "datatype": "BYTES",
                    "contents": {"bytesContents": [base64.b64encode(text).decode() for text in (b"3.300000:1", b"2.400000:3")]},
                }
            ],
        },
    ),
]
