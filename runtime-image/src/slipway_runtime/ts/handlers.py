"""The default handlers, as classes that a handler may derive from (ts/torch_handler of TorchServe 0.12): same hooks, same results.

Left out: GPUs, explanations (captum), the profiler, torch.compile by configuration. State dicts are read with weights_only=True.
"""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from slipway_runtime.ts.context import Context
from slipway_runtime.ts.names import list_classes_from_module, load_label_mapping, map_class_to_label

_EDGE, _SIZE = 256, 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BaseHandler:
    """Loads the model of the archive; preprocess, inference, postprocess are what a handler replaces."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Context | None = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location = "cpu"
        self.explain = False
        self.target = 0
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Context) -> None:
        """Load the model file and the state dict, or the TorchScript file, and index_to_name.json.

        Raises:
            RuntimeError: the archive has neither.
        """
        self.model_yaml_config = context.model_yaml_config
        self.device = torch.device(self.map_location)
        self.manifest = context.manifest
        folder = context.system_properties["model_dir"]
        model = self.manifest["model"]
        if model.get("serializedFile"):
            self.model_pt_path = str(Path(folder) / model["serializedFile"])
        if model.get("modelFile"):
            self.model = self._load_pickled_model(folder, model["modelFile"], self.model_pt_path)
        elif self.model_pt_path and self.model_pt_path.endswith(".pt"):
            self.model = self._load_torchscript_model(self.model_pt_path)
        else:
            raise RuntimeError("No model weights could be loaded")
        self.model.to(self.device)
        self.model.eval()
        self.mapping = load_label_mapping(str(Path(folder) / "index_to_name.json"))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        if not (Path(model_dir) / model_file).is_file():
            raise RuntimeError("Missing the model.py file")
        classes = list_classes_from_module(importlib.import_module(model_file.split(".", maxsplit=1)[0]))
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        model = classes[0]()
        if model_pt_path:
            model.load_state_dict(torch.load(model_pt_path, map_location=self.device, weights_only=True))
        return model

    def preprocess(self, data: Any) -> Any:
        """Make a tensor of the rows."""
        return torch.as_tensor(data, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """Make a list of the rows of the output."""
        return data.tolist()

    def handle(self, data: Any, context: Context) -> Any:
        """Answer a batch of rows."""
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))


def imagenet(image: Image.Image) -> torch.Tensor:
    """Return float32 [3, 224, 224]: shorter side to 256 pixels, the middle, 0 to 1, ImageNet's mean and deviation; as torchvision does."""
    width, height = image.size
    size = (_EDGE, int(_EDGE * height / width)) if width <= height else (int(_EDGE * width / height), _EDGE)
    resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - _SIZE) / 2), round((size[1] - _SIZE) / 2)
    return (to_tensor(resized.crop((left, top, left + _SIZE, top + _SIZE))) - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(
        3, 1, 1
    )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return float32 [channels, height, width] from 0 to 1."""
    pixels = np.asarray(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1).float().div(255)


class VisionHandler(BaseHandler):
    """Rows are images, as bytes, base64 text, or nested lists of what `image_processing` would give."""

    image_processing: Callable[[Image.Image], torch.Tensor] = staticmethod(imagenet)

    def preprocess(self, data: Any) -> Any:
        """Decode, process and stack the images."""
        return torch.stack([self._tensor(row) for row in data]).to(self.device)

    def _tensor(self, row: Any) -> torch.Tensor:
        image = row.get("data") or row.get("body")
        if isinstance(image, str):
            image = base64.b64decode(image)
        if isinstance(image, (bytes, bytearray)):
            return self.image_processing(Image.open(io.BytesIO(image)))
        return torch.FloatTensor(image)


class ImageClassifier(VisionHandler):
    """The best classes of each image, with their probabilities."""

    topk = 5

    def set_max_result_classes(self, topk: int) -> None:
        """Set how many classes are answered."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """Return how many classes are answered."""
        return self.topk

    def postprocess(self, data: Any) -> Any:
        """Return {name: probability} for each row."""
        probabilities, classes = torch.topk(torch.nn.functional.softmax(data, dim=1), self.topk, dim=1)
        return map_class_to_label(probabilities.tolist(), self.mapping, classes.tolist())


class ImageSegmenter(VisionHandler):
    """The class of each pixel and its probability."""

    def postprocess(self, data: Any) -> Any:
        """Return [height, width, 2] for each row."""
        best = torch.max(torch.nn.functional.softmax(data["out"], dim=1), dim=1)
        return torch.stack([best.indices.type(best.values.dtype), best.values], dim=3).tolist()


class ObjectDetector(VisionHandler):
    """Boxes from a threshold on; the model takes images of one size and returns a list of {boxes, labels, scores}."""

    image_processing = staticmethod(to_tensor)
    threshold = 0.5

    def postprocess(self, data: Any) -> Any:
        """Return a list of {name: box, score} for each row."""
        return [self._boxes(row) for row in data]

    def _boxes(self, row: Any) -> list[dict[str, Any]]:
        kept = row["scores"] >= self.threshold
        rows = zip(row["labels"][kept].tolist(), row["boxes"][kept].tolist(), row["scores"][kept].tolist(), strict=True)
        return [{(str(label) if self.mapping is None else self.mapping[str(label)]): box, "score": score} for label, box, score in rows]
