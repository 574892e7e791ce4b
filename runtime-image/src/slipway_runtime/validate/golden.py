"""Golden data: inputs and what the candidate made of them here, which every serving node must reproduce before it is ready.

The tolerance is a share of the largest output (at least of 1). Float32: 1e-4, as kernels chosen for another CPU differ by some 1e-6 of the
scale, a wrong file or a broken kernel by far more. The other precisions get some steps of what they resolve, since kernels of another CPU
add in another order and may round or saturate otherwise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from slipway_runtime.artifact import Signature
from slipway_runtime.samples import Array, Batch, is_batched
from slipway_runtime.settings import write_json
from slipway_runtime.texts import numbers_of

MAX_SAMPLES = 8
_TOLERANCES = {"Float32": 1e-4, "Float16": 4e-3, "BFloat16": 3e-2, "Int8Dynamic": 3e-2, "Int8Static": 3e-2}
INPUTS = "golden/inputs.npz"
OUTPUTS = "golden/outputs.npz"


def write_golden(folder: Path, samples: list[Batch], outputs: list[Batch], signature: Signature, precision: str = "Float32") -> None:
    """Write golden/inputs.npz, golden/outputs.npz and golden.json ({maxAbsoluteError}).

    Args:
        folder: created.
        samples: batches of inputs; the last is used, cut to 8 samples where the batch is dynamic.
        outputs: the candidate's.
        signature: which tensors have a batch axis.
        precision: of the candidate; sets the tolerance.
    """
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    dim = signature.inputs[0].shape[:1]
    cut = bool(dim) and isinstance(dim[0], str)
    batched = {spec.name for spec in (*signature.inputs, *signature.outputs) if spec.shape[:1] == dim or is_batched(spec, signature)}

    def shortened(batch: Batch) -> Batch:
        return {name: array[:MAX_SAMPLES] if cut and name in batched else array for name, array in batch.items()}

    golden = shortened(outputs[-1])
    np.savez(folder / INPUTS, **shortened(samples[-1]))  # type: ignore[arg-type]
    np.savez(folder / OUTPUTS, **golden)  # type: ignore[arg-type]
    scale = max((float(np.abs(_numbers(array)).max(initial=0.0)) for array in golden.values()), default=0.0)
    write_json(folder / "golden.json", {"maxAbsoluteError": _TOLERANCES[precision] * max(1.0, scale)})


def _numbers(array: Array) -> npt.NDArray[np.float64]:
    """The numbers of an output; of texts those in their JSON."""
    return (
        np.array([number for text in array.flat for number in numbers_of(text)[1]])
        if array.dtype.kind in "US"
        else array.astype(np.float64)
    )
