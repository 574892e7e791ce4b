"""The handler of an archive of TorchServe, loaded and called as TorchServe does. Runs the user's code: convert, validate and the server.

A handler takes a list of rows, each a dict of what a request had (`body`, or the fields of its form), and returns a list of answers.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement

from slipway_runtime import ts
from slipway_runtime.model_source import described, first_on_path
from slipway_runtime.packages import installed_version
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory
from slipway_runtime.torchserve import manifest_of
from slipway_runtime.ts.context import Context, RequestProcessor
from slipway_runtime.ts.names import list_classes_from_module

log = logging.getLogger("slipway")

_OFFERED = {
    "torchserve",
    "torch-model-archiver",
    "torch-workflow-archiver",
}  # what slipway_runtime.ts stands for, and what made the archive
_NEXT = (
    "nothing is installed in a running pod; build an image FROM slipway-runtime-torch that has it, and set it as runtime.torchImage of the "
    "chart, or put pure Python packages into the archive with --extra-files"
)
_DEFAULTS = {"image_classifier", "image_segmenter", "object_detector", "base_handler"}
_MAX_BYTES = 1 << 20
Row = dict[str, Any]


@dataclass(slots=True)
class Handler:
    """A loaded handler. Not for several threads at once: it keeps its call in itself, as TorchServe's workers do.

    Attributes:
        folder: the unpacked archive.
        entry: takes rows and the context.
        context: of every call.
    """

    folder: Path
    entry: Callable[[list[Row] | None, Context], Any]
    context: Context

    def call(self, rows: list[Row], headers: Sequence[Mapping[str, str]] | None = None) -> list[Answer]:
        """Answer rows.

        Args:
            rows: one a sample.
            headers: of the request of each row.

        Raises:
            HandlerError: the handler raised, or did not return a list with an answer for each row.
        """
        told = self.context.begin(list(headers or [{} for _ in rows]))
        try:
            answers = self.entry(rows, self.context)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise HandlerError(described(error, self.folder), _status_of(error)) from error
        if not isinstance(answers, list) or len(answers) != len(rows):
            got = f"{len(answers)} answers" if isinstance(answers, list) else f"a {type(answers).__name__}"
            raise HandlerError(f"the handler returned {got} for {len(rows)} rows; it must return a list with one for each")
        return [Answer(value, row) for value, row in zip(answers, told, strict=True)]


@dataclass(slots=True)
class Answer:
    """What a handler answers to a row: the value, and what it said in the context about status and headers."""

    value: Any
    told: RequestProcessor = field(default_factory=lambda: RequestProcessor({}))


class HandlerError(Exception):
    """A call that failed; `status` is the one that the handler chose with a PredictionException, else 500."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


def load_handler(folder: Path, batch_size: int = 1) -> Handler:
    """Check what the archive needs, import its handler and initialize it.

    Raises:
        Failure: RequirementMissing, EntrypointNotFound, EntrypointFailed, EntrypointInvalid, ModelFolderInvalid.
    """
    manifest = manifest_of(folder)
    check_requirements(folder, manifest)
    ts.install()
    context = Context(folder, manifest, _config(folder, manifest), batch_size)
    module, function = _imported(folder, str(manifest["model"]["handler"]))
    name = function or "handle"
    if hasattr(module, name):
        entry = getattr(module, name)
        _initialized(lambda: entry(None, context), folder)
        return Handler(folder, entry, context)
    classes = list_classes_from_module(module)
    if len(classes) != 1:
        have = ", ".join(kind.__name__ for kind in classes) or "none"
        raise Failure("EntrypointInvalid", f"{module.__name__} must have a function {name} or one class; its classes: {have}")
    service = _initialized(classes[0], folder)
    for wanted in ("initialize", "handle"):
        if not callable(getattr(service, wanted, None)):
            raise Failure("EntrypointInvalid", f"the class {classes[0].__name__} of {module.__name__} has no method {wanted}")
    _initialized(lambda: service.initialize(context), folder)
    return Handler(folder, service.handle, context)


def check_requirements(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare requirements.txt with what is installed, by name and version.

    Raises:
        Failure: RequirementMissing, with what is wanted and what there is; ModelFolderInvalid for a line that cannot be read.
    """
    name = manifest["model"].get("requirementsFile")
    if not name:
        return
    missing = [text for line in _lines(folder / Path(str(name)).name) for text in _lacking(line, str(name))]
    if missing:
        raise Failure("RequirementMissing", f"{Path(str(name)).name} wants {'; '.join(missing)}: {_NEXT}")


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise Failure("ModelFolderInvalid", f"the manifest names {path.name} as its requirements, which is not in the archive")
    if path.stat().st_size > _MAX_BYTES:
        raise Failure("ModelFolderInvalid", f"{path.name} has more than {_MAX_BYTES} bytes")
    for line in path.read_text("utf-8", "replace").splitlines():
        text = re.sub(r"(^|\s)#.*$", "", line).partition(" --hash=")[0].strip(" \\")
        if text and not text.startswith("-"):  # options of pip: where to find packages, which is of no matter here
            yield text


def _lacking(line: str, file: str) -> Iterator[str]:
    try:
        wanted = Requirement(line)
    except InvalidRequirement as error:
        raise Failure("ModelFolderInvalid", f"{file}: {line[:100]!r} is no requirement: {first_line(error)[:100]}") from error
    name = re.sub(r"[-_.]+", "-", wanted.name).lower()
    if name in _OFFERED or (wanted.marker is not None and not wanted.marker.evaluate()):
        return
    version = installed_version(name)
    if version is None:
        yield f"{line}, which is not in the image"
    elif not wanted.specifier.contains(version, prereleases=True):
        yield f"{line}, and the image has {version}"


def _config(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    name = manifest["model"].get("configFile")
    if not name:
        return {}
    path = folder / Path(str(name)).name
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Failure("ModelFolderInvalid", f"the configuration {path.name} cannot be read: {first_line(error)[:300]}") from error
    if not isinstance(value, dict):
        raise Failure("ModelFolderInvalid", f"the configuration {path.name} is no mapping of at most {_MAX_BYTES} bytes")
    return value


def _imported(folder: Path, handler: str) -> tuple[Any, str | None]:
    """Import `file.py`, `file:function` or the name of a default handler."""
    name, _, function = handler.partition(":")
    own = name.removesuffix(".py").rsplit("/", maxsplit=1)[-1]
    first_on_path(folder)
    if not (folder / f"{own}.py").is_file():
        if name in _DEFAULTS:
            return importlib.import_module(f"ts.torch_handler.{name}"), None
        raise Failure("EntrypointNotFound", f"the handler {own}.py is not in the archive")
    loaded = sys.modules.get(own)
    if loaded is not None and not str(getattr(loaded, "__file__", "")).startswith(str(folder.resolve())):
        raise Failure("EntrypointNotFound", f"the module name {own!r} is taken by an installed package; rename the handler")
    return _initialized(lambda: importlib.import_module(own), folder), function or None


def _initialized(action: Callable[[], Any], folder: Path) -> Any:
    try:
        return action()
    except ModuleNotFoundError as error:
        raise _missing(error, folder) from error
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise Failure("EntrypointFailed", f"the handler raised {described(error, folder)}") from error


def _missing(error: ModuleNotFoundError, folder: Path) -> Failure:
    name = str(error.name or error)
    where = described(error, folder)
    if name.partition(".")[0] == "ts":
        return Failure("RequirementMissing", f"the handler imports {name}, a part of TorchServe that this server does not offer ({where})")
    return Failure("RequirementMissing", f"the handler imports {name}, which is not in the image ({where}): {_NEXT}")


def _status_of(error: BaseException) -> int:
    status = getattr(error, "error_code", 500) if type(error).__name__ == "PredictionException" else 500
    return status if isinstance(status, int) and 400 <= status <= 599 else 500


def answer_text(value: Any) -> str:
    """Return an answer as text, for a tensor of strings: JSON, unless it is text already.

    Raises:
        HandlerError: it is neither.
    """
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise HandlerError(
            f"the handler returned a {type(value).__name__}, which is neither text nor JSON: {first_line(error)[:200]}"
        ) from error
