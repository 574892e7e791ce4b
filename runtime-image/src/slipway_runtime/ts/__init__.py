"""What a handler of TorchServe expects around it: a context, and the modules `ts.…` that handlers import. Not TorchServe.

TorchServe's own package is no dependency (docs/design/0012-handlers.md). `install` puts the names below into `sys.modules`; whatever else a
handler imports from `ts` is missing, which the loader says by name. A real `ts` that the image has is left alone.
"""

from __future__ import annotations

import sys
from importlib import util
from types import ModuleType

from slipway_runtime.ts import context, handlers, names

_MODULES: dict[str, dict[str, object]] = {
    "ts": {"__version__": context.VERSION},
    "ts.context": {"Context": context.Context, "RequestProcessor": context.RequestProcessor},
    "ts.handler_utils": {},
    "ts.handler_utils.timer": {"timed": names.timed},
    "ts.torch_handler": {},
    "ts.torch_handler.base_handler": {"BaseHandler": handlers.BaseHandler},
    "ts.torch_handler.vision_handler": {"VisionHandler": handlers.VisionHandler},
    "ts.torch_handler.image_classifier": {"ImageClassifier": handlers.ImageClassifier},
    "ts.torch_handler.image_segmenter": {"ImageSegmenter": handlers.ImageSegmenter},
    "ts.torch_handler.object_detector": {"ObjectDetector": handlers.ObjectDetector},
    "ts.utils": {},
    "ts.utils.util": {
        "PredictionException": names.PredictionException,
        "list_classes_from_module": names.list_classes_from_module,
        "load_label_mapping": names.load_label_mapping,
        "map_class_to_label": names.map_class_to_label,
    },
}


def install() -> None:
    """Make `import ts.…` find these modules; twice is once."""
    if "ts" in sys.modules or util.find_spec("ts") is not None:
        return
    for name, members in _MODULES.items():
        module = ModuleType(name, "Offered by slipway-runtime to handlers written for TorchServe.")
        module.__dict__.update(members)
        for member in members.values():
            if isinstance(member, type):
                member.__module__ = name  # as TorchServe's, by which it tells a handler's own classes from those it imports
        module.__path__ = []  # so that a module that is not offered is missing, and not an attribute error
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
