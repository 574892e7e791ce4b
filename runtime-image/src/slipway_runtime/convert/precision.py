"""Lower precisions of a PyTorch module: weights and computation in 16 bits, or int8 by torchao's PT2E quantizer.

A candidate keeps the dtypes of the signature whatever it computes in, so that clients notice nothing. torchao and not torch.ao: the
latter's PT2E flow has moved there and its eager and FX flows are deprecated, see docs/design/0003-conversion.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from slipway_runtime.artifact import Signature
from slipway_runtime.convert import Job
from slipway_runtime.convert.eager import tensors
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.samples import read_batches

_DTYPES = {"Float16": torch.float16, "BFloat16": torch.bfloat16}
_PERCENTILE = 99.99  # of the values of a tensor, kept inside the range that int8 can express


class Cast(torch.nn.Module):  # type: ignore[misc]
    """A module that computes in another dtype, between inputs and outputs of the signature's."""

    def __init__(self, inner: torch.nn.Module, dtype: torch.dtype, outputs: Iterable[torch.dtype]) -> None:
        super().__init__()
        self.inner = inner.to(dtype)
        self.dtype = dtype
        self.outputs = list(outputs)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cast, call, cast back."""
        cast = [tensor.to(self.dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
        results = self.inner(*cast)
        results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
        return tuple(result.to(dtype) for result, dtype in zip(results, self.outputs, strict=True))


def cast(module: torch.nn.Module, precision: str, signature: Signature) -> torch.nn.Module:
    """Return the module in a precision of 16 bits, or as it is."""
    if precision not in _DTYPES:
        return module
    return Cast(module, _DTYPES[precision], [getattr(torch, spec.dtype) for spec in signature.outputs]).eval()


def quantized(graph: torch.nn.Module, job: Job) -> torch.nn.Module:
    """Return an exported module with int8 weights per channel and int8 activations, in torchao's reference form (quantize, dequantize).

    Int8Dynamic measures activations in every call and covers linear layers; Int8Static measures them here, on the calibration set.

    Raises:
        Failure: ConversionFailed, with the quantizer's words.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415 - seconds, and only for int8

    is_dynamic = job.wanted.precision == "Int8Dynamic"
    batches = [] if is_dynamic else read_batches(job.calibration)
    try:
        prepared = prepare_pt2e(graph, _quantizer(job.calibration_method, is_dynamic=is_dynamic))
        with torch.no_grad():
            for batch in batches or read_batches(job.samples)[-1:]:
                prepared(*tensors(batch, job.signature))
        return convert_pt2e(prepared)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Failure("ConversionFailed", f"torchao: {first_line(error)[:600]}") from error


def _quantizer(method: str, *, is_dynamic: bool) -> Any:
    from torchao.quantization.pt2e.quantizer import QuantizationSpec, x86_inductor_quantizer  # noqa: PLC0415

    base = x86_inductor_quantizer.get_default_x86_inductor_quantization_config(is_dynamic=is_dynamic)
    if not is_dynamic:
        spec = QuantizationSpec(
            dtype=torch.uint8,
            quant_min=0,
            quant_max=127,  # 7 bits: AVX2 without VNNI adds pairs of products in 16 bits, which 8 bits overflow
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=_observer(method),
        )
        base = dataclasses.replace(base, input_activation=spec)
    return x86_inductor_quantizer.X86InductorQuantizer().set_global(base)


def _observer(method: str) -> Any:
    from torchao.quantization.pt2e.observer import HistogramObserver, MinMaxObserver  # noqa: PLC0415

    if method == "MinMax":
        return MinMaxObserver
    if method == "Entropy":  # torchao's search for the clipping range of the least quantization error; it has none by entropy itself
        return HistogramObserver

    class PercentileObserver(HistogramObserver):  # type: ignore[misc]
        """A histogram whose range holds all but the outermost values."""

        def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
            width = (self.max_val - self.min_val) / self.bins
            share = torch.cumsum(self.histogram, 0) / self.histogram.sum().clamp(min=1)
            outside = (1 - _PERCENTILE / 100) / 2
            low = int(torch.searchsorted(share, torch.tensor(outside)))
            high = int(torch.searchsorted(share, torch.tensor(1 - outside)))
            return self.min_val + width * low, self.min_val + width * (min(high, self.bins - 1) + 1)

    return PercentileObserver
