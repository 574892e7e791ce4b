"""A model that may be asked: loaded from verified files, warmed up, and proven on this node by its golden outputs."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slipway_runtime.artifact import Artifact, TensorSpec, takes_batches
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends import Backend, load_backend
from slipway_runtime.serve.backends.lone import LoneBackend
from slipway_runtime.serve.batching import QueueOptions, useful_batch
from slipway_runtime.serve.cgroup import memory_limit, memory_used
from slipway_runtime.serve.padding import Joiner, Padding
from slipway_runtime.serve.preprocess import ImagePreprocessing
from slipway_runtime.serve.protocol import Codec
from slipway_runtime.serve.tensors import DATATYPES, DTYPES, Tensors
from slipway_runtime.texts import numbers_of

log = logging.getLogger(__name__)

WARM_UP_RUNS = 20
WARM_UP_SECONDS = 2.0
INLINE_SECONDS = 0.0001
LONE_SECONDS = 0.001  # a shorter call gains little by more threads: to share it out takes them 0.1 ms
LONE_GAIN = 0.8
LONE_MEMORY = 4  # times the model's files: onnxruntime takes twice as much for a session, and requests need some
_PADDED_ROWS = 8


@dataclass(frozen=True, slots=True)
class GoldenBatch:
    """Inputs that fit one request and what they must give, within `limit` of every element."""

    inputs: Tensors
    outputs: Tensors
    limit: float


@dataclass(frozen=True, slots=True)
class Model:
    """A ready model.

    Attributes:
        artifact: what it was loaded from.
        backend: the engine that runs it.
        labels: class names, empty when there are none.
        preprocessing: for image uploads; None when the model takes none.
        codec: reads requests and writes answers.
        inline_elements: inputs of at most so many elements run faster than a hand-over to a lane costs; 0 when none do.
        max_batch: rows that a batch of several requests may have; 1 when the model takes no batches, or gains nothing by them.
        load_seconds: verification excluded; load, warm-up and golden outputs.
        golden: to be replayed when a probe asks for it; None when the artifact has none, or is a handler of TorchServe.
        lanes: worker threads that the backend wants; 0 when it leaves that to the server.
        padding: how requests of different lengths share a batch; None when they must not.
    """

    artifact: Artifact
    backend: Backend
    labels: Sequence[str]
    preprocessing: ImagePreprocessing | None
    codec: Codec
    inline_elements: int
    max_batch: int
    load_seconds: float
    golden: GoldenBatch | None = None
    lanes: int = 0
    padding: Padding | None = None

    @property
    def takes_rows(self) -> bool:
        """Whether a handler of TorchServe answers, which takes requests as they are."""
        return self.artifact.format == "TorchServe"

    def queue_options(self, options: QueueOptions) -> QueueOptions:
        """The options with the batch limit that this model gains by, and the lanes of its backend."""
        lanes, is_shared = self.lanes or options.lanes, not self.backend.lanes  # a device computes a larger batch at once
        return replace(options, max_batch=min(options.max_batch, self.max_batch), lanes=lanes, is_shared=is_shared)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load.

    Attributes:
        name: the model's name in answers.
        revision: the version in answers.
        threads: CPU threads for one call.
        cpus: CPU threads for a call that runs alone, where the engine can make a difference.
        labels: class names that replace the artifact's; None keeps those.
        max_batch: rows of a batch at most; 1 turns batching off.
        lanes: worker threads that were asked for; 0 leaves it to the backend.
    """

    name: str = "model"
    revision: str = "unknown"
    threads: int = 1
    cpus: int = 1
    labels: Sequence[str] | None = None
    max_batch: int = 1
    lanes: int = 0


def load_model(artifact: Artifact, options: LoadOptions) -> Model:
    """Load, warm up, and reproduce the golden outputs.

    Args:
        artifact: verified.
        options: how.

    Raises:
        Failure: ModelLoadFailed, GoldenMismatch, NonFiniteOutputs, InvalidArguments (labels), or of building the module.
    """
    started = time.perf_counter()
    _check_signature(artifact)
    preprocessing = ImagePreprocessing.parse(artifact.preprocessing)
    names = list(artifact.labels or ()) if options.labels is None else list(options.labels)
    _check_labels(names, artifact.signature.outputs[0])
    backend = load_backend(artifact, options.threads)
    if artifact.format == "TorchServe" and artifact.golden is None:
        inline, max_batch = 0, options.max_batch  # nothing to ask it; a handler takes lists of requests by its contract
    else:
        sample = _sample(artifact)
        runs = _warm_up(backend, sample)
        inline = _inline_elements(runs, sample)
        check_golden(backend, artifact)
        max_batch = _warm_up_batches(backend, artifact, options.max_batch)
        if artifact.format == "ONNX" and not backend.lanes and options.cpus > options.threads:  # torch's threads are the process's
            backend = _for_lone_calls(backend, artifact, options.cpus, min(runs))
    padding = proven_padding(backend, artifact) if max_batch > 1 else None
    codec = Codec(artifact.signature, options.name, options.revision, names)
    golden = None if artifact.format == "TorchServe" else _golden_batch(artifact)
    seconds, lanes = time.perf_counter() - started, 0 if options.lanes else backend.lanes
    return Model(artifact, backend, names, preprocessing, codec, inline, max_batch, seconds, golden, lanes, padding)


def _check_signature(artifact: Artifact) -> None:
    signature = artifact.signature
    if not signature.inputs or not signature.outputs:
        raise Failure("SignatureMissing", "the artifact's signature has no inputs or no outputs")
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in DATATYPES:
            raise Failure("ModelLoadFailed", f"tensor '{spec.name}' is {spec.dtype}, which the Open Inference Protocol has no type for")


def _check_labels(labels: Sequence[str], output: TensorSpec) -> None:
    classes = output.shape[-1] if len(output.shape) == 2 else None
    if labels and isinstance(classes, int) and classes != len(labels):
        raise Failure("InvalidArguments", f"{len(labels)} labels for the {classes} classes of output '{output.name}': give one per class")


def _for_lone_calls(narrow: Backend, artifact: Artifact, cpus: int, seconds: float) -> Backend:
    """Have a lone call, which takes `seconds`, computed on all CPUs by the model loaded once more: if that is quicker and memory allows."""
    if seconds < LONE_SECONDS:
        return narrow
    limit, size = memory_limit(), sum(file.size for file in artifact.files)
    if limit is not None and limit - memory_used() < LONE_MEMORY * size:
        log.info("a lone call has one CPU: memory has no room for the model (%d MiB) once more", size >> 20)
        return narrow
    try:
        wide = load_backend(artifact, cpus)
        check_golden(wide, artifact)
        took = min(_warm_up(wide, _sample(artifact), LONE_GAIN * seconds))
    except Failure as error:
        log.warning("a lone call has one CPU: with %d: %s", cpus, error)
        return narrow
    if took > LONE_GAIN * seconds:
        log.info("a lone call has one CPU: it takes %.1f ms, and %.1f with %d", seconds * 1e3, took * 1e3, cpus)
        wide.close()
        return narrow
    log.info("a lone call has %d CPUs: it takes %.1f ms, and %.1f beside others", cpus, took * 1e3, seconds * 1e3)
    return LoneBackend(narrow, wide)


# --- warm-up ------------------------------------------------------------------------------------------------------


def _warm_up(backend: Backend, sample: Tensors, enough: float = 0.0) -> list[float]:
    """Call until it is warm, at least once, or until a call takes no longer than `enough`; returns the seconds of each call."""
    runs = [_timed(backend, sample)]
    deadline = time.perf_counter() + WARM_UP_SECONDS
    while len(runs) < WARM_UP_RUNS and runs[-1] > enough and time.perf_counter() < deadline:
        runs.append(_timed(backend, sample))
    return runs


def _inline_elements(runs: Sequence[float], sample: Tensors) -> int:
    """`Model.inline_elements`, by what the sample's calls took."""
    return 0 if statistics.median(runs[len(runs) // 2 :]) >= INLINE_SECONDS else sum(array.size for array in sample.values())


def _timed(backend: Backend, inputs: Tensors) -> float:
    started = time.perf_counter()
    try:
        backend.infer(inputs)
    except Exception as error:
        raise Failure("ModelLoadFailed", f"the first call of the model failed: {type(error).__name__}: {error}"[:1500]) from error
    return time.perf_counter() - started


def _sample(artifact: Artifact) -> Tensors:
    """One sample: of the golden inputs, where there are any; else ones."""
    if artifact.golden is None:
        return {
            spec.name: np.full([dim if isinstance(dim, int) else 1 for dim in spec.shape], _filler(spec), DTYPES[spec.dtype])
            for spec in artifact.signature.inputs
        }
    golden = _arrays(artifact, artifact.golden.inputs)
    return next(_batches(golden, artifact.signature.inputs, limit=1))


def _filler(spec: TensorSpec) -> object:
    return "" if spec.dtype == "string" else 1


def _warm_up_batches(backend: Backend, artifact: Artifact, max_batch: int) -> int:
    """Run each batch size that may come up; returns `Model.max_batch`."""
    if max_batch <= 1 or not takes_batches(artifact.signature):
        return 1
    sample = _sample(artifact)
    if not _rows_are_independent(backend, sample, artifact):
        return 1
    seconds: list[tuple[int, float]] = []
    sizes = batch_sizes(max_batch)
    for size in sizes:
        inputs = {name: np.repeat(array[:1], size, axis=0) for name, array in sample.items()}
        runs = [_timed(backend, inputs)]  # may compile, or record a graph; the time for measuring begins after it
        deadline = time.perf_counter() + WARM_UP_SECONDS / len(sizes)
        while len(runs) < WARM_UP_RUNS and time.perf_counter() < deadline:
            runs.append(_timed(backend, inputs))
        if len(runs) > 1:
            seconds.append((size, min(runs[1:])))
    best = useful_batch(seconds, max_batch)
    log.info("batches: %s; up to %d are made", ", ".join(f"{size}: {took / size * 1e6:.0f} us a row" for size, took in seconds), best)
    return best


def _rows_are_independent(backend: Backend, sample: Tensors, artifact: Artifact) -> bool:
    """Whether two rows in one batch give what they give alone; a model that mixes rows must not see strangers' rows together."""
    single = {name: array[:1] for name, array in sample.items()}
    other = {name: array[:1] if array.dtype.kind in "OUSb" else np.zeros_like(array[:1]) for name, array in sample.items()}
    try:
        together = backend.infer({name: np.concatenate([single[name], other[name]]) for name in single})
        alone = [backend.infer(single), backend.infer(other)]
    except Exception as error:
        log.warning("batching is off: a batch of two failed: %s: %s", type(error).__name__, error)
        return False
    limit = _tolerance(artifact)
    for name, array in together.items():
        want = np.concatenate([part[name] for part in alone]) if alone[0][name].ndim else None
        if want is None or array.shape != want.shape or not _close(array, want, limit):
            log.warning("batching is off: output '%s' of a row depends on the rows beside it", name)
            return False
    return True


def proven_padding(backend: Backend, artifact: Artifact) -> Padding | None:
    """What the signature allows, when this model answers a row the same whether it is padded or not; else None, and the log says why."""
    padding = Padding.of(artifact.signature)
    if padding is None:
        return None
    joiner, long = Joiner(padding, backend.empty), _long_sample(artifact, padding)
    lengths = padding.lengths(long)
    limit = _tolerance(artifact)
    for shorter in ({name: size - 1 for name, size in lengths.items()}, {name: size // 2 for name, size in lengths.items()}):
        short = padding.shortened(long, shorter)
        pair = [long, short]
        try:
            together = [*joiner.parted(backend.infer(joiner.joined(pair)), pair)]
            alone = [backend.infer(inputs) for inputs in pair]
        except Exception as error:
            log.warning("padding is off: lengths of %s and %s in one batch failed: %s: %s", lengths, shorter, type(error).__name__, error)
            return None
        for got, want in zip(together, alone, strict=True):
            for name, array in want.items():
                if array.shape != got[name].shape or not _close(got[name], array, limit):
                    log.warning(
                        "padding is off: output '%s' of rows of %s depends on what it is padded with; give forward() a mask", name, shorter
                    )
                    return None
    log.info("padding: requests of different %s share batches", ", ".join(lengths))
    return padding


def _long_sample(artifact: Artifact, padding: Padding) -> Tensors:
    """Some rows, at least four long along each dimension that is padded; no row must look like padding throughout."""
    if artifact.golden is not None:
        arrays = _arrays(artifact, artifact.golden.inputs)
        sample = {name: array[:_PADDED_ROWS] for name, array in next(_batches(arrays, artifact.signature.inputs)).items()}
    else:
        random = np.random.default_rng(0)  # zeros and ones: they fit a mask, numbers of words, and anything else
        sample = {
            spec.name: random.integers(0, 2, [dim if isinstance(dim, int) else _PADDED_ROWS for dim in spec.shape]).astype(
                DTYPES[spec.dtype]
            )
            for spec in artifact.signature.inputs
        }
    for name, axes in padding.inputs.items():
        for axis, _ in axes:
            short = sample[name].shape[axis]
            sample[name] = np.concatenate([sample[name]] * -(-4 // short), axis) if short < 4 else sample[name]
    return sample


def _tolerance(artifact: Artifact) -> float:
    """By how much two answers to one question may differ."""
    return float(artifact.golden.max_absolute_error) if artifact.golden is not None else 1e-3


def _close(got: np.ndarray, want: np.ndarray, limit: float) -> bool:
    if got.dtype.kind in "OUS":
        return bool((got == want).all())
    return bool(np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-3, atol=limit, equal_nan=True))


def batch_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return [*sizes, max_batch] if max_batch > 1 else sizes


# --- golden outputs -----------------------------------------------------------------------------------------------


def check_golden(backend: Backend, artifact: Artifact) -> None:
    """Compare the outputs for the golden inputs with those of validation; an artifact without golden data passes.

    Raises:
        Failure: GoldenMismatch, with the output and the largest difference; ArtifactCorrupt, golden files unreadable.
    """
    if artifact.golden is None:
        return
    wanted = _arrays(artifact, artifact.golden.outputs)
    inputs = _arrays(artifact, artifact.golden.inputs)
    got = _run_all(backend, inputs, artifact)
    limit = float(artifact.golden.max_absolute_error)
    for spec in artifact.signature.outputs:
        _compare(spec.name, got[spec.name], wanted.get(spec.name), limit)


def _golden_batch(artifact: Artifact) -> GoldenBatch | None:
    """The golden data of one request: all of them, or the first batch where the signature fixes its size."""
    if artifact.golden is None:
        return None
    outputs, pieces = (
        _arrays(artifact, artifact.golden.outputs),
        list(_batches(_arrays(artifact, artifact.golden.inputs), artifact.signature.inputs)),
    )
    if len(pieces) > 1:
        rows = len(next(iter(pieces[0].values())))
        outputs = {name: array[:rows] for name, array in outputs.items()}
    return GoldenBatch(pieces[0], outputs, float(artifact.golden.max_absolute_error))


def golden_difference(got: Tensors, model: Model) -> str | None:
    """Say how the answer to the golden inputs differs from the golden outputs, None when it does not."""
    if model.golden is None:
        return None
    try:
        for spec in model.artifact.signature.outputs:
            _compare(spec.name, got[spec.name], model.golden.outputs.get(spec.name), model.golden.limit)
    except Failure as failure:
        return failure.message
    return None


def _run_all(backend: Backend, inputs: Tensors, artifact: Artifact) -> Tensors:
    try:
        parts = [backend.infer(batch) for batch in _batches(inputs, artifact.signature.inputs)]
    except Exception as error:
        raise Failure("GoldenMismatch", f"the model failed on the golden inputs: {type(error).__name__}: {error}"[:1500]) from error
    return {name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}


def _compare(name: str, got: np.ndarray, wanted: np.ndarray | None, limit: float) -> None:
    if wanted is None or got.shape != wanted.shape:
        shape = None if wanted is None else list(wanted.shape)
        raise Failure("GoldenMismatch", f"golden output '{name}': expected shape {shape}, got {list(got.shape)}")
    if wanted.dtype.kind in "OUS":
        return _compare_texts(name, got, wanted, limit)
    # Equal infinities and NaNs at the same places are equal; any other non-finite value is an infinite difference.
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    same = (got == wanted) | ((got != got) & (wanted != wanted))  # noqa: PLR0124 (NaN, in any dtype)
    difference = np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))
    worst = float(difference.max(initial=0.0))
    if worst > limit:
        raise Failure("GoldenMismatch", f"golden output '{name}' differs by {worst:.3g} on this node; at most {limit:.3g} is allowed")


def _compare_texts(name: str, got: np.ndarray, wanted: np.ndarray, limit: float) -> None:
    for row, (own, want) in enumerate(zip(got.ravel(), wanted.ravel(), strict=True)):
        (words, numbers), (wanted_words, wanted_numbers) = numbers_of(own), numbers_of(want)
        if words != wanted_words or not np.allclose(numbers, wanted_numbers, rtol=0, atol=limit):
            raise Failure(
                "GoldenMismatch", f"golden output '{name}', row {row}, is {str(own)[:100]!r} on this node, not {str(want)[:100]!r}"
            )


def _arrays(artifact: Artifact, path: str) -> Tensors:
    try:
        with np.load(artifact.directory / path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError) as error:
        raise Failure("ArtifactCorrupt", f"{path} cannot be read: {error}") from error


def _batches(tensors: Tensors, specs: Sequence[TensorSpec], limit: int | None = None) -> Iterator[Tensors]:
    """Split along the first dimension into what the signature takes; inputs of a fixed batch come in such pieces."""
    missing = [spec.name for spec in specs if spec.name not in tensors]
    if missing:
        raise Failure("ArtifactCorrupt", f"the golden inputs lack '{missing[0]}'")
    arrays = {spec.name: np.ascontiguousarray(tensors[spec.name], dtype=DTYPES[spec.dtype]) for spec in specs}
    fixed = [spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)]
    size = fixed[0] if fixed else limit
    total = len(next(iter(arrays.values()))) if size else 0
    if not size or total % size:
        yield arrays
        return
    for start in range(0, total, size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
