"""From a model folder to an nn.Module: runs the user's code, so only convert, validate and the eager server import it.

Every way this goes wrong has a reason of its own; the message names the user's file and line, the keys or the global.
"""

from __future__ import annotations

import importlib
import linecache
import os
import pickle
import re
import sys
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slipway_runtime.reasons import Failure, first_line, is_out_of_memory

_SHOWN_KEYS = 3
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class|WeightsUnpickler error: Unsupported class|call to) ([\w.]+)")


def build_module(folder: Path, entrypoint: str, arguments: Mapping[str, Any], weights: str | None) -> torch.nn.Module:
    """Call the entrypoint, load the weights, and return the module in eval mode.

    Args:
        folder: the model folder; it becomes the first entry of sys.path.
        entrypoint: `module:callable`.
        arguments: keyword arguments for the callable.
        weights: path of a safetensors file or a state dict, relative to the folder; None keeps what the entrypoint returned.

    Raises:
        Failure: EntrypointNotFound, EntrypointFailed, EntrypointInvalid, WeightsMismatch, UnsafePickle or ModelFolderInvalid.
    """
    function = load_entrypoint(folder, entrypoint)
    module = _called(function, folder, entrypoint, arguments)
    if not isinstance(module, torch.nn.Module):
        kind = type(module)
        raise Failure("EntrypointInvalid", f"{entrypoint} returned {kind.__module__}.{kind.__qualname__}, not a torch.nn.Module")
    if weights is not None:
        load_weights(module, read_weights(folder / weights, weights), weights)
    return module.eval()


def load_entrypoint(folder: Path, entrypoint: str) -> Callable[..., Any]:
    """Import the callable of an entrypoint.

    Raises:
        Failure: EntrypointNotFound, or EntrypointFailed when the import raises.
    """
    module_name, _, attribute = entrypoint.partition(":")
    if not module_name or not attribute:
        raise Failure("EntrypointNotFound", f"the entrypoint must be module:callable, got {entrypoint!r}")
    first_on_path(folder)
    _check_module_file(folder, module_name)
    found: Any = _imported(module_name, folder)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(sorted(name for name in vars(found) if not name.startswith("_") and callable(getattr(found, name)))[:10])
            raise Failure("EntrypointNotFound", f"module {module_name!r} has no {attribute!r}; its callables are: {names or 'none'}")
        found = getattr(found, part)
    if not callable(found):
        raise Failure("EntrypointNotFound", f"{entrypoint} is a {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]


def first_on_path(folder: Path) -> None:
    """Make modules of the folder win over all others."""
    text = os.fspath(folder.resolve())
    if text in sys.path:
        sys.path.remove(text)
    sys.path.insert(0, text)
    sys.dont_write_bytecode = True  # the folder is read-only in pods, and part of what is hashed elsewhere
    importlib.invalidate_caches()


def _check_module_file(folder: Path, module_name: str) -> None:
    base = folder.joinpath(*module_name.split("."))
    if not base.with_name(base.name + ".py").is_file() and not base.is_dir():
        have = ", ".join(sorted(path.name for path in folder.glob("*.py"))[:10])
        raise Failure("EntrypointNotFound", f"there is no module {module_name!r} in the model folder; its modules are: {have or 'none'}")


def _imported(module_name: str, folder: Path) -> Any:
    loaded = sys.modules.get(module_name)
    if loaded is not None and not _is_within(getattr(loaded, "__file__", None), folder):
        raise Failure("EntrypointNotFound", f"the module name {module_name!r} is taken by an installed package; rename the file")
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise Failure("EntrypointFailed", f"importing {module_name!r} raised {described(error, folder)}") from error


def _is_within(file: str | None, folder: Path) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())


def _called(function: Callable[..., Any], folder: Path, entrypoint: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise Failure("EntrypointFailed", f"{entrypoint} raised {described(error, folder)}") from error


def described(error: BaseException, folder: Path) -> str:
    """Return `Type: message (file:line: source line)` of an exception; the place is the last one in the model folder."""
    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} ({Path(error.filename).name}:{error.lineno})"
    place = place_in(error, folder)
    return f"{text} ({place})" if place else text


def place_in(error: BaseException, folder: Path) -> str:
    """Return `file:line: source line` of the last frame in the model folder, or nothing."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_within(frame.filename, folder)]
    if not own:
        return ""
    last = own[-1]
    name = Path(last.filename).resolve().relative_to(folder.resolve())
    return f"{name}:{last.lineno}: {linecache.getline(last.filename, last.lineno or 0).strip()}"


def read_weights(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors, or from a file of torch.save with weights_only=True.

    Raises:
        Failure: ModelFolderInvalid when the file is absent or damaged; UnsafePickle, with the global, when loading would run code.
    """
    if not path.is_file():
        raise Failure("ModelFolderInvalid", f"the weights file {name} is not in the model folder")
    state = _read_safetensors(path, name) if path.suffix == ".safetensors" else _read_pickle(path, name)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Failure("WeightsMismatch", f"{name} holds a {type(state).__name__} that is not a state dict (names to tensors)")
    return dict(state)


def _read_safetensors(path: Path, name: str) -> Any:
    from safetensors import SafetensorError  # noqa: PLC0415 - not in the ONNX-only image
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Failure("ModelFolderInvalid", f"{name} is not a valid safetensors file: {error}") from error


def _read_pickle(path: Path, name: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = unsafe_globals(path, str(error))
        if found:
            raise Failure("UnsafePickle", f"loading {name} would import {', '.join(found)}; save the state dict as safetensors") from error
        raise Failure("ModelFolderInvalid", f"{name} cannot be read: {first_line(error)}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Failure("ModelFolderInvalid", f"{name} cannot be read: {first_line(error)}") from error


def unsafe_globals(path: Path, message: str) -> list[str]:
    """Return the globals that a refused pickle asks for, as far as torch's message and picklescan name them (at most 3)."""
    from picklescan.scanner import scan_file_path  # noqa: PLC0415

    found = _GLOBAL.findall(message)
    try:
        result = scan_file_path(str(path))
        found += [f"{item.module}.{item.name}" for item in result.globals if item.safety.value != "innocuous"]
    except Exception:
        found += []
    return list(dict.fromkeys(name.rstrip(".") for name in found))[:_SHOWN_KEYS]


def load_weights(module: torch.nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Load a state dict strictly.

    Raises:
        Failure: WeightsMismatch, with up to 3 keys of each kind: missing, unexpected, of another shape.
    """
    own = module.state_dict()
    missing = _keys(key for key in own if key not in state)
    unexpected = _keys(key for key in state if key not in own)
    shapes = _keys(
        f"{key} is {list(state[key].shape)} in the file, {list(own[key].shape)} in the module"
        for key in own
        if key in state and state[key].shape != own[key].shape
    )
    parts = [f"{what}: {keys}" for what, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)) if keys]
    if parts:
        raise Failure("WeightsMismatch", f"{name} does not fit the module; {'; '.join(parts)}")
    try:
        module.load_state_dict(dict(state), strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise Failure("WeightsMismatch", f"{name} does not fit the module: {first_line(error)}") from error


def _keys(found: Any) -> str:
    listed: Sequence[str] = list(found)
    more = f" and {len(listed) - _SHOWN_KEYS} more" if len(listed) > _SHOWN_KEYS else ""
    return ", ".join(listed[:_SHOWN_KEYS]) + more
