"""TorchServe's model store: `config.properties` and `model-store/<model>.mar`.

The archive is that of torch-model-archiver: a zip of the files and of MAR-INF/MANIFEST.json. A TorchScript model gets a handler of ours
(`torchserve_handler.py`); an artifact of format TorchServe is the user's own archive, and its files go back into one as they are.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from slipway_runtime.artifact import Artifact, TensorSpec, takes_batches
from slipway_runtime.layout import Place, model_files
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.tensors import DATATYPES, wire_shape

MANIFEST = "MAR-INF/MANIFEST.json"
STORE, HANDLER, DESCRIPTION = "model-store", "slipway_handler.py", "slipway-model.json"
VERSION = "1.0"
_MANAGEMENT_PORT = 8081
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal artifacts make equal archives


def write(artifact: Artifact, folder: Path, place: Place) -> None:
    """Fill a model store with one archive.

    Raises:
        Failure: InvalidArguments for a format that TorchServe does not load.
    """
    own = {"TorchScript": _own_files, "TorchServe": lambda *_: {}}.get(artifact.format)
    if own is None:
        raise Failure("InvalidArguments", f"layout TorchServe has no place for {artifact.format}; it takes TorchScript, TorchServe")
    store = folder / STORE
    store.mkdir()
    with zipfile.ZipFile(store / f"{place.model_name}.mar", "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for path in model_files(artifact):
            archive.write(artifact.directory / path, path)
        for path, text in own(artifact, place).items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), text)
    batches = artifact.format == "TorchServe" or takes_batches(artifact.signature)
    (folder / "config.properties").write_text(properties(place, batches=batches))


def manifest(model_name: str, entry: str) -> dict[str, Any]:
    """Return MAR-INF/MANIFEST.json of a TorchScript model with our handler."""
    model = {"modelName": model_name, "serializedFile": entry, "handler": HANDLER, "modelVersion": VERSION}
    return {"createdOn": "01/01/1980 00:00:00", "runtime": "python", "model": model, "archiverVersion": "0.12.0"}


def properties(place: Place, *, batches: bool) -> str:
    """Return config.properties.

    The management API, with which anyone could load code, listens on loopback only. Predictions need no token: in the cluster, as with
    the other servers, the network decides who may ask.

    Args:
        place: ports, name and batching.
        batches: whether a handler may be given the rows of several requests.
    """
    model = {
        "defaultVersion": True,
        "marName": f"{place.model_name}.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": place.max_batch if batches else 1,
        "maxBatchDelay": max(1, round(place.max_delay * 1000)) if batches else 1,  # milliseconds, at least one
        "responseTimeout": 120,
    }
    lines = {
        "inference_address": f"http://0.0.0.0:{place.port}",
        "management_address": f"http://127.0.0.1:{_MANAGEMENT_PORT}",
        "metrics_address": f"http://0.0.0.0:{place.metrics_port}",
        "metrics_mode": "prometheus",
        "disable_system_metrics": "true",
        "disable_token_authorization": "true",
        "enable_envvars_config": "true",  # TS_<NAME> of the ServingRuntime overrides what stands here
        "install_py_dep_per_model": "false",
        "load_models": f"{place.model_name}={place.model_name}.mar",
        "models": json.dumps({place.model_name: {VERSION: model}}, separators=(",", ":")),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _own_files(artifact: Artifact, place: Place) -> dict[str, str]:
    """Return what makes a TorchScript artifact an archive: the manifest, our handler, and what the handler needs to know."""
    described = {
        "inputs": [_tensor(spec) for spec in artifact.signature.inputs],
        "outputs": [_tensor(spec) for spec in artifact.signature.outputs],
        "batches": takes_batches(artifact.signature),
        "threads": place.threads,
    }
    return {
        MANIFEST: json.dumps(manifest(place.model_name, artifact.entry), indent=1),
        DESCRIPTION: json.dumps(described, indent=1),
        HANDLER: Path(__file__).with_name("torchserve_handler.py").read_text(),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": wire_shape(spec)}
