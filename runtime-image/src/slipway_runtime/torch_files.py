"""Models that were converted before they came here, TorchScript files and exported programs, as modules. Only convert imports it.

Both are archives whose readers run more than tensors: the reader of exported programs unpickles, imports what tree specs name, and hands
expressions to sympy and guards to `exec`; TorchScript may read and write files. The wall is the sandbox of convert (no sockets, no token,
nothing mounted but the source); the checks here refuse what a model does not need before the reader sees it. They read through torch's
own archive reader, so that both see the same bytes. Sources: torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py,
torch/export/_unlift.py of torch 2.15.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slipway_runtime.model_source import unsafe_globals
from slipway_runtime.reasons import Failure, first_line, is_out_of_memory

_UNIT = re.compile(r"data/(weights|constants|sample_inputs)/[\w.-]+|models/[\w.-]+\.json|archive_(format|version)|byteorder|\.data/\w+")
_CODE = re.compile(r"code/.+\.py")
_FILES = re.compile(r"\b(?:torch|ops\.\w+)\.(from_file|save|_?rpc_\w+|load_library)\b")  # operators that touch files or the network
_NAME = re.compile(r"[\w.]*")
_WORD = re.compile(r"(?!.*__)[\w.+-]*")
_NAMESPACES = "aten|prims|prim|quantized|quantized_decomposed|torchao|torchvision|higher_order"
_TARGET = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.(?!from_file|triton_)\w+(\.\w+)?|torch\.(_sym_|sym_)\w+|_operator\.(?!attrgetter|methodc|call)\w+|math\.\w+|"
)
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_CALLED = re.compile(r"[A-Z]\w*|min|max|abs|floor|ceiling|sqrt|log|exp")  # of sympy; the rest of what it evaluates in are builtins
_ATTRIBUTES = re.compile(r"size|stride|dim|storage_offset|numel|inf|nan|isnan|_?sym_\w+")
_MATH = re.compile(r"[a-z0-9]+")
_NODES: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.Call, ast.keyword),
    *(ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Attribute, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_MAX_NAMES = 100_000


class Loaded(torch.nn.Module):  # type: ignore[misc]
    """A loaded model as a module like others: its own forward has no signature to look at, and an exported one refuses eval()."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Call it."""
        return self.inner(*inputs)

    def train(self, mode: bool = True) -> Loaded:
        """Leave the mode as it was saved: an exported program has none any more."""
        if not mode and isinstance(self.inner, torch.jit.ScriptModule):
            self.inner.eval()
        self.training = mode
        return self


def script_module(path: Path, name: str) -> torch.nn.Module:
    """Load a file of torch.jit.save, in eval mode.

    Raises:
        Failure: ModelFolderInvalid when it is none; UnsafePickle when its code names an operator for files or the network.
    """
    reader = _opened(path, name, "TorchScript")
    for record in reader.get_all_records():
        found = _FILES.search(_text(reader, record, name)) if _CODE.fullmatch(record) else None
        if found:
            raise Failure("UnsafePickle", f"{name} calls {found[0]} in {record}; a model has no need for files or the network")
    try:
        return Loaded(torch.jit.load(str(path), map_location="cpu")).eval()
    except (RuntimeError, ValueError, OSError) as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        text = f"{name} is not TorchScript ({first_line(error)[:300]}); a state dict needs an entrypoint, and in an archive its modelFile"
        raise Failure("ModelFolderInvalid", text) from error


def exported_program(path: Path, name: str) -> torch.export.ExportedProgram:
    """Check and load a file of torch.export.save.

    Raises:
        Failure: ModelFolderInvalid when it is none, or damaged; UnsafePickle, with the place, when loading it would run code.
    """
    if _checked_archive(path, name):
        from slipway_runtime.serve.backends.exported import register_int8_operators  # noqa: PLC0415 - seconds

        register_int8_operators()
    try:
        return torch.export.load(str(path))
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise Failure("ModelFolderInvalid", f"{name} cannot be loaded by torch.export: {first_line(error)[:400]}") from error


def program_module(path: Path, name: str) -> torch.nn.Module:
    """Return an exported program as a module; raises Failure as `exported_program` does."""
    return Loaded(exported_program(path, name).module()).eval()


def _opened(path: Path, name: str, what: str) -> Any:
    try:
        return torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:
        raise Failure("ModelFolderInvalid", f"{name} is not {what}: {first_line(error)[:300]}") from error


def _record(reader: Any, record: str, name: str) -> bytes:
    try:
        return bytes(reader.get_record(record))
    except RuntimeError as error:
        raise Failure("ModelFolderInvalid", f"{name} is damaged at {record}: {first_line(error)[:300]}") from error


def _text(reader: Any, record: str, name: str) -> str:
    return _record(reader, record, name).decode("utf-8", "replace")


def _json(reader: Any, record: str, name: str) -> Any:
    try:
        return json.loads(_record(reader, record, name))
    except (ValueError, RecursionError) as error:
        raise Failure("ModelFolderInvalid", f"{name}: {record} is not JSON: {first_line(error)[:200]}") from error


def _checked_archive(path: Path, name: str) -> bool:
    """Check every part of a .pt2 that its reader would run; returns whether it calls quantized operators.

    Raises:
        Failure: ModelFolderInvalid, UnsafePickle.
    """
    reader = _opened(path, name, "an exported program")
    records = list(reader.get_all_records())
    if "archive_format" not in records or _record(reader, "archive_format", name) != b"pt2":
        raise Failure("ModelFolderInvalid", f"{name} is no archive of torch.export.save as torch 2.9 and later save one; save it again")
    for record in records:
        _check_record(reader, record, name)
    programs = [record for record in records if record.startswith("models/")]
    if len(programs) != 1:
        raise Failure("ModelFolderInvalid", f"{name} holds {len(programs)} exported programs, wanted one")
    program = _json(reader, programs[0], name)
    _check_values(program, name)
    return any(key == "target" and ".quantized_decomposed." in text for key, text in _strings(program))


def _check_record(reader: Any, record: str, name: str) -> None:
    part = record.partition("/")[2]
    if record.startswith("data/aotinductor/"):
        text = f"{name} is an AOTInductor package: machine code, which nobody can check; give the program that it was compiled from"
        raise Failure("ModelFolderInvalid", text)
    if record.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")):
        raise Failure("UnsafePickle", f"{name} holds a pickled object, {record}; only tensors are loaded")
    if not _UNIT.fullmatch(record):
        raise Failure("ModelFolderInvalid", f"{name} holds {record[:100]}, which is no part of an exported program")
    if record.endswith("_config.json"):
        for row in dict(_json(reader, record, name).get("config") or {}).values():
            if row.get("use_pickle"):
                _check_pickle(reader, f"data/{part.partition('/')[0]}/{row.get('path_name')}", name)
    elif record.endswith(".pt"):  # sample inputs; weights and constants as earlier versions of torch wrote them
        _check_pickle(reader, record, name)


def _check_pickle(reader: Any, record: str, name: str) -> None:
    data = _record(reader, record, name)
    try:
        if data:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        found = ", ".join(unsafe_globals(Path(record), str(error))) or first_line(error)[:200]
        raise Failure("UnsafePickle", f"{name}: loading {record} would import {found}; only tensors are loaded") from error


def _strings(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Every string of a document, with the key that it stands under."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, str(name), depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key, depth + 1)
    elif isinstance(value, str):
        yield key, value


def _check_values(program: Any, name: str) -> None:
    checks = {
        "expr_str": _is_expression,
        "guards_code": _is_expression,
        "target": lambda text: _TARGET.fullmatch(text) is not None and "__" not in text,
        "as_operator": lambda text: _TARGET.fullmatch(text) is not None and "__" not in text,
        "name": lambda text: _NAME.fullmatch(text) is not None,
        "forward_arg_names": lambda text: _NAME.fullmatch(text) is not None,
        "in_spec": _is_plain_tree,
        "out_spec": _is_plain_tree,
    }
    for key, text in _strings(program):
        if key in checks and not checks[key](text):
            raise Failure("UnsafePickle", f"{name}: {key} {text[:120]!r} is nothing that torch.export writes for a model, and would be run")


def _is_expression(text: str) -> bool:
    """Whether a text is arithmetic over symbols and sizes, and nothing else: it will be evaluated."""
    if not text.isascii() or set(text) & set("\n\r\\#`;{}"):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(nodes) < _MAX_NAMES and all(isinstance(node, _NODES) and _is_plain(node) for node in nodes)


def _is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        is_math = isinstance(node.value, ast.Name) and node.value.id == "math"
        return (_MATH if is_math else _ATTRIBUTES).fullmatch(node.attr) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Attribute) or (isinstance(node.func, ast.Name) and _CALLED.fullmatch(node.func.id) is not None)
    if isinstance(node, ast.Name):
        return "__" not in node.id
    return not isinstance(node, ast.Constant) or not isinstance(node.value, (str, bytes)) or _is_word(node.value)


def _is_word(value: str | bytes) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_plain_tree(text: str) -> bool:
    """Whether a tree spec holds nothing but tuples, lists and dicts with plain keys; other kinds import what they name."""
    if not text:
        return True
    try:
        return all(_is_plain_node(node) for node in _nodes(json.loads(text)[1]))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return False


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in node["children_spec"]:
        yield from _nodes(child)


def _is_plain_node(node: Any) -> bool:
    context = json.loads(node["context"]) if isinstance(node["context"], str) else node["context"]
    keys = context if isinstance(context, list) else [] if context is None else [None]
    return node["type"] in _TREES and all(isinstance(key, (str, int)) and _WORD.fullmatch(str(key)) is not None for key in keys)
