"""Hostile model files, made by code. Nothing here is checked in as bytes; a payload does no more than write a canary file.

A case edits a good model folder (ONNX ones: a good `model.onnx`), or makes an archive that a web server offers.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKER = "the-secret-outside-the-folder"
INVALID = ("ModelFolderInvalid",)
UNSAFE = ("UnsafePickle", "ModelFolderInvalid")
DAMAGED = (
    "ModelFolderInvalid",
    "WeightsMismatch",
    "NonFiniteOutputs",
    "SignatureMismatch",
    "ConversionFailed",
    "UnsupportedOperator",
    "ParityFailed",
)


@dataclass(frozen=True)
class World:
    """Where a case is made.

    Attributes:
        folder: the model folder.
        web: where archives are put for the web server.
        canary: a file that a payload would write.
        secret: a file outside of everything, holding MARKER.
    """

    folder: Path
    web: Path
    canary: Path
    secret: Path


@dataclass(frozen=True)
class Case:
    """A hostile file.

    Attributes:
        name: of the test.
        threat: id in docs/threats.yaml.
        make: makes it.
        reasons: what may be said about it; `Converted` among them where the damage cannot be seen without a pinned digest.
        how: `claim` (the folder is on a volume), `placed` (it lies there as fetch would leave it) or the archive's name on the web.
        onnx: the folder is that of an ONNX model.
    """

    name: str
    threat: str
    make: Callable[[World], object]
    reasons: tuple[str, ...] = INVALID
    how: str = "claim"
    onnx: bool = False


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def touch(world: World) -> str:
    return f"touch {world.canary}"


def weights(world: World, data: bytes) -> None:
    """Make `data` the weights."""
    (world.folder / "weights.safetensors").unlink(missing_ok=True)
    (world.folder / "weights.pt").write_bytes(data)
    text = (world.folder / "model.yaml").read_text()
    (world.folder / "model.yaml").write_text(text.replace("weights.safetensors", "weights.pt"))


def torch_zip(pickled: bytes, *records: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("archive/data.pkl", pickled), ("archive/version", b"3\n"), ("archive/byteorder", b"little"), *records):
            archive.writestr(name, data)
    return buffer.getvalue()


def os_call(world: World) -> bytes:
    return pickle.dumps(Call(os.system, touch(world)))


def opcode_call(module: str, name: str, argument: str) -> bytes:
    """Protocol 0 text, for globals that this interpreter needs not have."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def bad_crc(world: World) -> bytes:
    data = bytearray(torch_zip(os_call(world)))
    place = data.index(b"PK\x01\x02")
    data[place + 16 : place + 20] = b"\0\0\0\0"
    data[14:18] = b"\0\0\0\0"
    return bytes(data)


def out_of_storage(world: World) -> bytes:
    """A tensor of 2**34 values over a storage of 4."""
    import torch  # noqa: PLC0415

    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    want = b"(K\x04\x85" if b"(K\x04\x85" in files[name] else b"K\x04\x85"
    files[name] = files[name].replace(want, want[:-3] + b"\x8a\x05" + struct.pack("<Q", 1 << 34)[:5] + b"\x85", 1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, data in files.items():
            archive.writestr(key, data)
    return buffer.getvalue()


PICKLES = [
    Case("pickle os.system", "T01", lambda w: weights(w, os_call(w)), UNSAFE),
    Case("pickle builtins.eval", "T01", lambda w: weights(w, pickle.dumps(Call(eval, f"open({str(w.canary)!r}, 'w')"))), UNSAFE),
    Case("pickle builtins.exec", "T01", lambda w: weights(w, pickle.dumps(Call(exec, f"open({str(w.canary)!r}, 'w')"))), UNSAFE),
    Case("pickle subprocess", "T01", lambda w: weights(w, opcode_call("subprocess", "getoutput", touch(w))), UNSAFE),
    Case("pickle runpy", "T01", lambda w: weights(w, opcode_call("runpy", "run_path", str(w.canary))), UNSAFE),
    Case("pickle of a pickle", "T01", lambda w: weights(w, pickle.dumps(Call(pickle.loads, os_call(w)))), UNSAFE),
    Case("pickle of a less known module", "T01", lambda w: weights(w, opcode_call("asyncio.unix_events", "os.system", touch(w))), UNSAFE),
    Case("pickle by torch.load's own helper", "T01", lambda w: weights(w, opcode_call("torch._utils", "_rebuild_parameter", "x")), UNSAFE),
    Case("pickle in a torch zip", "T01", lambda w: weights(w, torch_zip(os_call(w))), UNSAFE),
    Case("pickle in a torch zip with a wrong CRC", "T02", lambda w: weights(w, bad_crc(w)), UNSAFE),
    Case("pickle renamed to safetensors", "T02", lambda w: (w.folder / "weights.safetensors").write_bytes(os_call(w))),
    Case("7z renamed to pt", "T02", lambda w: weights(w, b"7z\xbc\xaf\x27\x1c\0\4" + os.urandom(64)), UNSAFE),
    Case("zip renamed to pt", "T02", lambda w: weights(w, zipped(("../../canary", b"x"))), UNSAFE),
    Case(
        "torch zip that climbs",
        "T03",
        lambda w: weights(w, torch_zip(pickle.dumps({}), (f"archive/../../../../{w.canary}", b"x"))),
        (*UNSAFE, "WeightsMismatch"),
    ),
    Case("pickle of a bytes object of 2**60", "T04", lambda w: weights(w, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x."), UNSAFE),
    Case("tensor beyond its storage", "T04", lambda w: weights(w, out_of_storage(w)), DAMAGED),
    Case("pickle that never stops", "T04", lambda w: weights(w, b"\x80\x02" + b"(" * 200_000), UNSAFE),
    Case("pt of no bytes", "T05", lambda w: weights(w, b"")),
]


def zipped(*members: tuple[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def safetensors(world: World, header: object, body: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (world.folder / "weights.safetensors").write_bytes(struct.pack("<Q", size) + text + body)


def row(shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


SAFETENSORS = [
    Case("safetensors header of 2**63 bytes", "T06", lambda w: safetensors(w, {}, length=1 << 63)),
    Case("safetensors header longer than the file", "T06", lambda w: safetensors(w, {}, length=1000)),
    Case("safetensors offsets beyond the file", "T06", lambda w: safetensors(w, {"a": row([256], 0, 1024)}, b"x" * 16)),
    Case("safetensors offsets backwards", "T06", lambda w: safetensors(w, {"a": row([1], 8, 4)}, b"x" * 16)),
    Case("safetensors tensors that overlap", "T06", lambda w: safetensors(w, {"a": row([2], 0, 8), "b": row([2], 4, 12)}, b"x" * 12)),
    Case("safetensors shape that overflows", "T06", lambda w: safetensors(w, {"a": row([1 << 40, 1 << 40], 0, 16)}, b"x" * 16)),
    Case("safetensors header that is no JSON", "T06", lambda w: safetensors(w, b"{" * 64)),
    Case("safetensors header nested 100,000 deep", "T06", lambda w: safetensors(w, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    Case("safetensors of no bytes", "T05", lambda w: (w.folder / "weights.safetensors").write_bytes(b"")),
    *(
        Case(f"safetensors cut at {percent} %", "T07", lambda w, p=percent: cut(w.folder / "weights.safetensors", p))
        for percent in range(10, 100, 10)
    ),
    *(
        Case(
            f"safetensors with bit flip {seed}", "T08", lambda w, s=seed: flip(w.folder / "weights.safetensors", s), (*DAMAGED, "Converted")
        )
        for seed in range(5)
    ),
]


def cut(path: Path, percent: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def tarred(world: World, name: str, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(world.web / name, "w:gz") as archive:
        archive.add(world.folder, arcname=".")
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4777
    return info


def tar(name: str, threat: str, *members: Callable[[World], tuple[tarfile.TarInfo, bytes]]) -> Case:
    return Case(name, threat, lambda w: tarred(w, "m.tgz", *(made(w) for made in members)), how="m.tgz")


def packed(name: str, threat: str, data: Callable[[World], bytes], reasons: tuple[str, ...] = INVALID, file: str = "m.zip") -> Case:
    return Case(name, threat, lambda w: (w.web / file).write_bytes(data(w)), reasons, how=file)


def good_tar(world: World) -> bytes:
    tarred(world, "good.tgz")
    return (world.web / "good.tgz").read_bytes()


def huge_member(_: World) -> bytes:
    info = member("weights.pt")
    info.size = 1 << 62
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 512)


def overlapping(_: World) -> bytes:
    """A hundred entries of the central directory that share one compressed megabyte."""
    data = zipped(("a", b"\0" * (20 << 20)))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries = b"".join(data[start : end - 1] + bytes([64 + number]) for number in range(1, 60))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 59, 59, len(entries), start, 0)
    return data[:start] + entries + tail


ARCHIVES = [
    tar("tar with an absolute path", "T09", lambda w: (member(str(w.canary)), b"x")),
    tar("tar that climbs", "T09", lambda w: (member("../../../../" + str(w.canary)), b"x")),
    tar("tar with a link out of it", "T10", lambda w: (member("weights.pt", tarfile.SYMTYPE, str(w.secret)), b"")),
    tar(
        "tar that writes through a link",
        "T10",
        lambda w: (member("d", tarfile.SYMTYPE, str(w.canary.parent)), b""),
        lambda w: (member(f"d/{w.canary.name}"), b"x"),
    ),
    tar("tar with a hard link out of it", "T10", lambda w: (member("weights.pt", tarfile.LNKTYPE, str(w.secret)), b"")),
    tar("tar with a device", "T10", lambda w: (member("zero", tarfile.CHRTYPE), b"")),
    tar("tar with a pipe", "T10", lambda w: (member("pipe", tarfile.FIFOTYPE), b"")),
    tar("tar with a file twice", "T09", lambda w: (member("model.py"), b"import os")),
    packed("tar member of 2**62 bytes", "T11", huge_member, ("ModelFolderInvalid", "SourceTooLarge"), "m.tgz"),
    packed("gzip bomb", "T11", lambda w: gzip.compress(member_bytes("a", 200 << 20), 1), ("SourceTooLarge",), "m.tgz"),
    packed("zip bomb", "T11", lambda w: zipped(("a", b"\0" * (200 << 20))), ("SourceTooLarge",)),
    packed("zip bomb of entries that overlap", "T11", overlapping, ("SourceTooLarge", "ModelFolderInvalid")),
    packed("zip of 10,001 files", "T11", lambda w: zipped(*((f"f{number}", b"") for number in range(10_001)))),
    packed("zip that climbs", "T09", lambda w: zipped(("../../../../" + str(w.canary), b"x"))),
    packed("zip with an absolute path", "T09", lambda w: zipped((str(w.canary), b"x"))),
    packed("zip with a backslash", "T09", lambda w: zipped(("..\\..\\canary", b"x"))),
    packed("zip with a link", "T10", lambda w: zipped(("weights.pt", str(w.secret).encode()), mode=0o120777)),
    packed("zip with a file that is a folder", "T09", lambda w: zipped(("a", b"x"), ("a/b", b"x"))),
    packed("zip with a name of 5,000 letters", "T09", lambda w: zipped(("a" * 5000, b"x"))),
    packed("zip of no bytes", "T05", lambda w: b""),
    *(
        packed(f"tar.gz cut at {percent} %", "T07", lambda w, p=percent: good_tar(w)[: len(good_tar(w)) * p // 100], file="m.tgz")
        for percent in range(10, 100, 10)
    ),
]


def member_bytes(name: str, size: int) -> bytes:
    info = member(name)
    info.size = size
    return info.tobuf() + b"\0" * size


def onnx_model(world: World, edit: Callable[[Any], object]) -> None:
    import onnx  # noqa: PLC0415

    path = world.folder / "model.onnx"
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())


def external(location: Callable[[World], str], **entries: str) -> Callable[[World], None]:
    """Make the weights of the model external data at a location."""

    def make(world: World) -> None:
        def edit(model: Any) -> None:
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = 1
            for key, value in {"location": location(world), **entries}.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value

        onnx_model(world, edit)

    return make


def link_data(world: World, link: Callable[[Path, Path], object]) -> None:
    external(lambda _: "data.bin")(world)
    link(world.secret, world.folder / "data.bin")


def huge_dims(model: Any) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 31, 1 << 31])


def cycle(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[0].output[0]


def nested(model: Any) -> None:
    """Graphs in attributes of nodes of graphs, 200 deep."""
    graph = model.graph
    for _ in range(200):
        node = graph.node.add(op_type="If", input=["c"], output=["o"])
        attribute = node.attribute.add(name="then_branch", type=5)
        graph = attribute.g


def makes_huge(model: Any) -> None:
    """A node that makes 2**40 numbers when the model runs."""
    import onnx  # noqa: PLC0415

    shape = onnx.helper.make_tensor("huge", 7, [1], [1 << 40])
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["zeros"], ["total"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Add", ["y0", "total"], ["y"]))
    model.graph.node[0].output[0] = "y0"


def custom_op(model: Any) -> None:
    model.graph.node[0].domain = "evil"
    model.opset_import.add(domain="evil", version=1)


def onnx(name: str, threat: str, make: Callable[[World], object], reasons: tuple[str, ...] = INVALID, how: str = "claim") -> Case:
    return Case(name, threat, make, reasons, how, onnx=True)


def edited(edit: Callable[[Any], object]) -> Callable[[World], object]:
    return lambda world: onnx_model(world, edit)


UNUSABLE = (*DAMAGED, "ValidationFailed")  # onnxruntime refuses what the checker lets pass
MEMORY = ("ValidationFailed", "ConversionOutOfMemory", "ConversionFailed", "UnsupportedOperator", "ModelFolderInvalid")
ONNX = [
    onnx("onnx data at an absolute path", "T12", external(lambda w: str(w.secret))),
    onnx("onnx data that climbs", "T12", external(lambda w: "../../../../" + str(w.secret))),
    onnx("onnx data that climbs inside", "T12", external(lambda w: "a/../../secret")),
    onnx("onnx data that is not there", "T12", external(lambda w: "data.bin")),
    onnx("onnx data behind a link, on a volume", "T12", lambda w: link_data(w, lambda a, b: b.symlink_to(a))),
    onnx("onnx data behind a link", "T12", lambda w: link_data(w, lambda a, b: b.symlink_to(a)), how="placed"),
    onnx("onnx data behind a hard link", "T12", lambda w: link_data(w, lambda a, b: b.hardlink_to(a)), how="placed"),
    onnx(
        "onnx data beyond its file",
        "T13",
        lambda w: (external(lambda _: "data.bin", offset="0", length=str(1 << 40))(w), (w.folder / "data.bin").write_bytes(b"x")),
        UNUSABLE,
    ),
    onnx(
        "onnx data at a negative offset",
        "T13",
        lambda w: (external(lambda _: "data.bin", offset="-8", length="8")(w), (w.folder / "data.bin").write_bytes(b"x" * 8)),
        UNUSABLE,
    ),
    onnx("onnx tensor of 2**62 values", "T13", edited(huge_dims), DAMAGED),
    onnx("onnx node that makes 2**40 numbers", "T13", edited(makes_huge), MEMORY),
    onnx("onnx graph with a cycle", "T13", edited(cycle), DAMAGED),
    onnx("onnx graphs nested 200 deep", "T13", edited(nested), DAMAGED),
    onnx("onnx with a foreign operator", "T14", edited(custom_op), UNUSABLE),
    onnx("onnx of no bytes", "T05", lambda w: (w.folder / "model.onnx").write_bytes(b""), DAMAGED),
    onnx("onnx that is a pickle", "T02", lambda w: (w.folder / "model.onnx").write_bytes(os_call(w)), DAMAGED),
    *(
        onnx(f"onnx cut at {percent} %", "T07", lambda w, p=percent: cut(w.folder / "model.onnx", p), DAMAGED)
        for percent in range(10, 100, 10)
    ),
    *(
        onnx(f"onnx with bit flip {seed}", "T08", lambda w, s=seed: flip(w.folder / "model.onnx", s), (*DAMAGED, "Converted"))
        for seed in range(5)
    ),
]


def replaced(old: str, new: str) -> Callable[[World], object]:
    def make(world: World) -> None:
        path = world.folder / "model.yaml"
        path.write_text(path.read_text().replace(old, new))

    return make


def laughs(world: World) -> None:
    lines = ["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
    text = "\n  ".join(["arguments:", *lines])
    replaced("arguments: {classes: 10}", text)(world)


def object_array(world: World) -> None:
    import numpy as np  # noqa: PLC0415

    np.savez(world.folder / "golden.npz", image=np.array([Call(os.system, touch(world))], dtype=object))
    (world.folder / "model.yaml").write_text((world.folder / "model.yaml").read_text() + "validation: {data: golden.npz}\n")


def manifest(**model: str) -> Callable[[World], bytes]:
    text = json.dumps({"model": {"handler": "base_handler", **model}, "runtime": "python"})
    return lambda w: zipped(("MAR-INF/MANIFEST.json", text.encode()), ("model.py", b"class Net: pass"))


FOLDERS = [
    Case("folder with a link to a file", "T10", lambda w: (w.folder / "extra").symlink_to(w.secret)),
    Case("folder with a link to a folder", "T10", lambda w: (w.folder / "extra").symlink_to(w.secret.parent)),
    Case("folder with a pipe", "T10", lambda w: os.mkfifo(w.folder / "pipe")),
    Case(
        "model.yaml with a Python object",
        "T15",
        lambda w: (w.folder / "model.yaml").write_text(f"labels: !!python/object/apply:os.system ['{touch(w)}']"),
    ),
    Case("model.yaml that laughs a billion times", "T15", laughs),
    Case("model.yaml that holds itself", "T15", replaced("arguments: {classes: 10}", "arguments: &a {classes: *a}")),
    Case("model.yaml of 2 MiB", "T15", lambda w: (w.folder / "model.yaml").write_bytes(b"#" * (2 << 20))),
    Case("weights outside the folder", "T16", replaced("weights.safetensors", "../../../secret")),
    Case("weights at an absolute path", "T16", replaced("weights.safetensors", "/etc/passwd")),
    Case("entrypoint in the standard library", "T16", replaced("model:build", "os:system"), ("EntrypointNotFound",)),
    Case("golden data with objects", "T17", object_array, ("ValidationFailed",)),
    packed("mar that climbs", "T18", lambda w: zipped(("../" * 8 + str(w.canary), b"x")), file="m.mar"),
    packed("mar whose manifest climbs", "T18", manifest(serializedFile="../../secret", modelFile="model.py"), file="m.mar"),
    packed("mar whose manifest is nested", "T18", lambda w: zipped(("MAR-INF/MANIFEST.json", b'{"model":' + b"[" * 100_000)), file="m.mar"),
    packed(
        "mar with a pickle",
        "T18",
        lambda w: zipped(("MAR-INF/MANIFEST.json", MAR), ("model.py", NET), ("w.pt", os_call(w))),
        UNSAFE,
        "m.mar",
    ),
    packed("mar that is no zip", "T18", lambda w: b"x" * 100, file="m.mar"),
]
MAR = json.dumps({"model": {"handler": "image_classifier", "modelFile": "model.py", "serializedFile": "w.pt"}}).encode()
NET = b"import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(1, 1)\n"


PROGRAM = """
format: %s
signature:
  inputs: [{name: x, dtype: float32, shape: [batch, 8]}]
  outputs: [{name: y, dtype: float32, shape: [batch, 4]}]
"""
Records = dict[str, bytes]


def alone(world: World, kind: str, name: str, data: bytes) -> None:
    """Make the folder that of one converted model."""
    for path in world.folder.iterdir():
        path.unlink()
    (world.folder / "model.yaml").write_text(PROGRAM % kind)
    (world.folder / name).write_bytes(data)


def exported() -> Records:
    """The records of a good exported program."""
    import torch  # noqa: PLC0415

    layer = torch.nn.Linear(8, 4).eval()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, (torch.zeros(2, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def rezipped(records: Records) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"model/{name}", data)
    return buffer.getvalue()


def pt2(name: str, edit: Callable[[World, Records], object], reasons: tuple[str, ...] = UNSAFE) -> Case:
    def make(world: World) -> None:
        records = exported()
        edit(world, records)
        alone(world, "ExportedProgram", "model.pt2", rezipped(records))

    return Case(f"pt2 {name}", "T21", make, reasons)


def in_graph(old: bytes, new: Callable[[World], str]) -> Callable[[World, Records], None]:
    """Replace the first of a text in the graph by a JSON string."""

    def edit(world: World, records: Records) -> None:
        graph = records["models/model.json"]
        assert old in graph
        records["models/model.json"] = graph.replace(old, json.dumps(new(world)).encode(), 1)

    return edit


def python_call(world: World) -> str:
    return f"__import__('os').system('{touch(world)}')"


def guarded(world: World, records: Records) -> None:
    graph = json.loads(records["models/model.json"])
    records["models/model.json"] = json.dumps(graph | {"guards_code": [python_call(world)]}).encode()


def expressed(world: World, records: Records) -> None:
    text = records["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    records["models/model.json"] = (text[:start] + python_call(world) + text[text.index('"', start) :]).encode()


def called(world: World, records: Records) -> None:
    """A node that calls a function of a module that torch imports."""
    graph = json.loads(records["models/model.json"])
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "", "arg": {"as_string": touch(world)}, "kind": 1}]
    records["models/model.json"] = json.dumps(graph).encode()


def tree(world: World, records: Records) -> None:
    """A tree of a kind that imports what its context names."""
    graph = json.loads(records["models/model.json"])
    context = {"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": []}
    spec = {"type": "collections.defaultdict", "context": json.dumps(context), "children_spec": []}
    graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, spec])
    records["models/model.json"] = json.dumps(graph).encode()


def pickled_weight(world: World, records: Records) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    for row in config["config"].values():
        row["use_pickle"] = True
        records[f"data/weights/{row['path_name']}"] = torch_zip(os_call(world))
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def pickled_constant(world: World, records: Records) -> None:
    row = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    records["data/constants/opaque_obj_0"] = os_call(world)
    records["data/constants/model_constants_config.json"] = json.dumps({"config": {"c": row}}).encode()


def scripted(name: str, source: Callable[[World], str], reasons: tuple[str, ...] = UNSAFE) -> Case:
    """A TorchScript module compiled from source."""

    def make(world: World) -> None:
        import importlib.util  # noqa: PLC0415

        import torch  # noqa: PLC0415

        path = world.web / "hostile_source.py"  # the compiler wants a file
        path.write_text("import torch\nfrom typing import Tuple\n\n\nclass Net(torch.nn.Module):\n" + source(world))
        spec = importlib.util.spec_from_file_location("hostile_source", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module.Net()), buffer)
        alone(world, "TorchScript", "model.pt", buffer.getvalue())

    return Case(f"torchscript {name}", "T21", make, reasons)


def with_pickle(world: World) -> bytes:
    """A TorchScript file whose data is a pickle that calls a function."""
    import torch  # noqa: PLC0415

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(8, 4).eval(), torch.zeros(2, 8)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    return rezipped(records | {"data.pkl": os_call(world)})


CONVERTED = [
    pt2("with a pickle as sample inputs", lambda w, r: r.update({"data/sample_inputs/model.pt": torch_zip(os_call(w))})),
    pt2("with weights that are pickles", pickled_weight),
    pt2("with weights as earlier versions pickled them", lambda w, r: r.update({"data/weights/model.pt": torch_zip(os_call(w))})),
    pt2("with a pickled constant", pickled_constant),
    pt2("whose size is an expression in Python", expressed),
    pt2("whose guard is Python", guarded),
    pt2("whose node calls os.system", called),
    pt2("whose node reads a file", in_graph(b'"torch.ops.aten.linear.default"', lambda _: "torch.ops.aten.from_file.default")),
    pt2("whose tree imports a module", tree),
    pt2("with a library", lambda w, r: r.update({"data/aotinductor/model/x.so": b"\x7fELF"})),
    pt2("with a file beside its parts", lambda w, r: r.update({"../../escape": b"x"})),
    pt2("of the old format", lambda w, r: (r.clear(), r.update({"serialized_state_dict.pt": torch_zip(os_call(w)), "version": b"8.0"}))),
    pt2("whose graph is nested 100,000 deep", lambda w, r: r.update({"models/model.json": b'{"a":' + b"[" * 100_000})),
    Case("pt2 that is a pickle", "T21", lambda w: alone(w, "ExportedProgram", "model.pt2", os_call(w))),
    *(
        Case(
            f"pt2 cut at {percent} %", "T07", lambda w, p=percent: alone(w, "ExportedProgram", "model.pt2", begun(rezipped(exported()), p))
        )
        for percent in (20, 50, 80)
    ),
    scripted("that writes a file", lambda w: f"    def forward(self, x):\n        torch.save(x, '{w.canary}')\n        return x[:, :4]\n"),
    scripted(
        "that reads a file",
        lambda w: f"    def forward(self, x):\n        return torch.from_file('{w.secret}', False, 16, dtype=torch.uint8)\n",
    ),
    scripted(
        "that writes a file when it is loaded",
        lambda w: (
            "    @torch.jit.export\n    def __getstate__(self) -> Tuple[int, bool]:\n        return 1, False\n"
            "    @torch.jit.export\n    def __setstate__(self, state: Tuple[int, bool]) -> None:\n        self.training = state[1]\n"
            f"        torch.save(torch.ones(1), '{w.canary}')\n"
            "    def forward(self, x):\n        return x[:, :4]\n"
        ),
    ),
    Case("torchscript with a pickle", "T21", lambda w: alone(w, "TorchScript", "model.pt", with_pickle(w))),
    Case("torchscript that is a pickle", "T21", lambda w: alone(w, "TorchScript", "model.pt", os_call(w))),
    Case("torchscript that is a pickle in a torch zip", "T21", lambda w: alone(w, "TorchScript", "model.pt", torch_zip(os_call(w)))),
]


def begun(data: bytes, percent: int) -> bytes:
    return data[: len(data) * percent // 100]


def all_cases() -> Iterator[Case]:
    yield from (*PICKLES, *SAFETENSORS, *ARCHIVES, *ONNX, *FOLDERS, *CONVERTED)


CASES = tuple(all_cases())
