"""Lower precisions of an ONNX file, by onnxruntime's own tools: float16 with the signature's dtypes kept, dynamic and static int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from slipway_runtime.artifact import Signature
from slipway_runtime.convert import Job
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import Batch, batch_size, is_batched, read_batches

# Dynamic quantization of a convolution is slower than the convolution, and onnxruntime lacks kernels for some of its forms.
_DYNAMIC_OPERATORS = ["MatMul", "Gemm", "Gather", "EmbedLayerNormalization", "Attention", "LSTM"]
_TEMPORARY = "float32.onnx"
_DATA = ".data"


def reduce(job: Job, entry: str) -> None:
    """Replace a Float32 file of `job.output` by one of the wanted precision.

    Raises:
        Failure: ConversionFailed, with the tool's words.
    """
    if job.wanted.precision == "Float32":
        return
    path = job.output / entry
    source = job.output / _TEMPORARY
    try:
        model = onnx.load(str(path))  # with its external data, which is written anew
        for file in job.output.rglob("*"):
            if file.is_file():
                file.unlink()
        _TOOLS[job.wanted.precision](model, path, source, job)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"onnxruntime's tool for {job.wanted.precision}: {first_line(error)[:600]}") from error
    for file in job.output.glob(f"{_TEMPORARY}*"):
        file.unlink()


def _float16(model: Any, path: Path, _source: Path, _job: Job) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415
    from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: PLC0415

    reduced = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    reduced.topological_sort()  # the casts of the inputs are put at the end
    save(reduced.model, path)


def _dynamic(model: Any, path: Path, source: Path, _job: Job) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    _prepared(model, source)
    quantize_dynamic(
        str(source),
        str(path),
        op_types_to_quantize=_DYNAMIC_OPERATORS,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=_is_large(model),
    )


def _static(model: Any, path: Path, source: Path, job: Job) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    methods = {"MinMax": CalibrationMethod.MinMax, "Entropy": CalibrationMethod.Entropy, "Percentile": CalibrationMethod.Percentile}
    _prepared(model, source)
    quantize_static(
        str(source),
        str(path),
        Reader(singles(read_batches(job.calibration), job.signature)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,  # CPUs without VNNI add pairs of products in 16 bits, which 8 bits overflow
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[job.calibration_method],
        use_external_data_format=_is_large(model),
    )


_TOOLS = {"Float16": _float16, "Int8Dynamic": _dynamic, "Int8Static": _static}


class Reader:
    """The calibration batches, as onnxruntime's calibrators ask for them."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches: Iterator[Batch] = iter(batches)

    def get_next(self) -> Batch | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)


def singles(batches: list[Batch], signature: Signature) -> list[Batch]:
    """Return batches of one sample where the batch is dynamic: the calibrators that count values want all tensors of one shape."""
    if batch_size(signature) is not None:
        return batches
    batched = {spec.name for spec in signature.inputs if is_batched(spec, signature)}
    return [
        {name: array[row : row + 1] if name in batched else array for name, array in batch.items()}
        for batch in batches
        for row in range(len(batch[signature.inputs[0].name]))
    ]


def _prepared(model: Any, source: Path) -> None:
    """Write the model with the shapes that the quantizer asks for, where onnx can infer them."""
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata  # noqa: PLC0415

    model = model if _is_large(model) else onnx.shape_inference.infer_shapes(model)
    add_pre_process_metadata(model)  # else the quantizer asks for what was done already
    save(model, source)


def _is_large(model: Any) -> bool:
    return bool(model.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF // 2)


def save(model: Any, path: Path) -> None:
    """Write a model, its weights beside it when they would not fit into a protobuf."""
    large = _is_large(model)
    onnx.save(model, str(path), save_as_external_data=large, location=f"{path.name}{_DATA}" if large else None)
