"""Image file -> input tensor, as the model folder declares it (`preprocessing.image`). Runs in a worker lane."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from slipway_runtime.artifact import Signature
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.messages import BadRequest
from slipway_runtime.serve.tensors import Array, Tensors

MAX_PIXELS = 64 * 1024 * 1024
_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """How an image becomes a tensor: (pixel * scale - mean) / std.

    Attributes:
        mode: ``L`` or ``RGB``.
        size: height and width in pixels.
        scale: factor on pixels of 0 to 255.
        mean: one value for all channels, or one per channel.
        std: as `mean`.
        layout: ``NCHW`` or ``NHWC``.
        resize: the shorter side is made this long first, and `size` is cut out of the middle, as torchvision's Resize and CenterCrop
            do; None: the whole image is made `size`.
    """

    mode: str
    size: tuple[int, int]
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"
    resize: int | None = None

    @classmethod
    def parse(cls, preprocessing: Mapping[str, Any] | None) -> ImagePreprocessing | None:
        """Read `preprocessing` of slipway.json; None when it declares no image.

        Raises:
            Failure: ModelLoadFailed, a field is wrong.
        """
        image = (preprocessing or {}).get("image")
        if not image:
            return None
        try:
            height, width = (int(side) for side in image["size"])
            parsed = cls(
                mode=image.get("mode", "RGB"),
                size=(height, width),
                scale=float(image["scale"]) if image.get("scale") is not None else 1 / 255,
                mean=_floats(image.get("mean"), 0.0),
                std=_floats(image.get("std"), 1.0),
                layout=image.get("layout") or "NCHW",
                resize=int(image["resize"]) if image.get("resize") is not None else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Failure("ModelLoadFailed", f"preprocessing.image is wrong: {error!r}") from error
        parsed._check()
        return parsed

    def _check(self) -> None:
        channels = _CHANNELS.get(self.mode)
        if channels is None or self.layout not in ("NCHW", "NHWC") or min(*self.size, self.resize or 1) < 1 or 0.0 in self.std:
            raise Failure("ModelLoadFailed", "preprocessing.image: mode is L or RGB, layout NCHW or NHWC, size positive, std not 0")
        if not {len(self.mean), len(self.std)} <= {1, channels}:
            raise Failure("ModelLoadFailed", f"preprocessing.image: mean and std need 1 or {channels} values for mode {self.mode}")

    def tensor(self, file: bytes) -> Array:
        """Decode one image file.

        Args:
            file: PNG, JPEG or anything else that Pillow reads.

        Returns:
            float32, [channels, height, width] or [height, width, channels].

        Raises:
            BadRequest: not an image, damaged, or too many pixels.
        """
        pixels = np.asarray(self._resized(file), dtype=np.float32).reshape(*self.size, _CHANNELS[self.mode])
        scaled = (pixels * np.float32(self.scale) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return scaled.transpose(2, 0, 1) if self.layout == "NCHW" else scaled

    def _resized(self, file: bytes) -> Image.Image:
        height, width = self.size
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(file)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadRequest(f"the image has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read")
                upright = ImageOps.exif_transpose(image).convert(self.mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRequest(f"the image cannot be read: {error}") from error
        if self.resize is not None:
            return _middle(upright, self.resize, (height, width))
        if upright.size == (width, height):
            return upright
        return upright.resize((width, height), Image.Resampling.BILINEAR)


def _middle(image: Image.Image, shorter: int, size: tuple[int, int]) -> Image.Image:
    """Return torchvision's CenterCrop(size) of Resize(shorter); beyond the edges pixels are black, as there."""
    factor = shorter / min(image.size)
    width, height = (shorter if side == min(image.size) else int(factor * side) for side in image.size)
    scaled = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return scaled.crop((left, top, left + size[1], top + size[0]))


def image_inputs(files: Sequence[bytes], preprocessing: ImagePreprocessing, signature: Signature) -> Tensors:
    """Turn image files into the batch of the model's only input.

    Raises:
        BadRequest: an image cannot be read.
    """
    spec = signature.inputs[0]
    batch = np.stack([preprocessing.tensor(file) for file in files])
    return {spec.name: np.ascontiguousarray(batch, dtype=spec.dtype)}


def _floats(value: object, default: float) -> tuple[float, ...]:
    if value is None:
        return (default,)
    return tuple(float(item) for item in value) if isinstance(value, (list, tuple)) else (float(str(value)),)
