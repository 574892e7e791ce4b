"""Train two versions of a digit classifier and write what the rest of the example needs.

    python train.py OUT      OUT/v1 OUT/v2: model folders for `slipway push`
                             OUT/heldout/<class>-<index>.png, OUT/heldout.npz: the fifth of the data that no training saw

Deterministic: the same numbers on every run of the same machine and torch, so that a second run pushes the same artifact.
"""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.numpy import save as save_tensors
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED, GOLDEN_SAMPLES = 20, 100
UPSCALE, SHARPENING = 8, 4  # a PNG of 64x64 pixels can be looked at
build = runpy.run_path(str(Path(__file__).with_name("model.py")))["build"]  # PYTHONSAFEPATH keeps this folder off the path
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Version:
    """What makes a version."""

    name: str
    width: int
    epochs: int
    rate: float
    seed: int


VERSIONS = (Version("v1", width=8, epochs=12, rate=5e-3, seed=1), Version("v2", width=16, epochs=14, rate=4e-3, seed=1))


def as_png(pixels: np.ndarray) -> bytes:
    """Return a digit (8x8, 0..16) as a picture that `as_input` turns into the digit again, as nearly as 0..255 allows.

    Reducing a picture blurs it a little; so what is lost is added beforehand, a few times.
    """
    wanted = pixels.astype(np.float32) * np.float32(255 / 16)
    picture = _enlarged(wanted)
    for _ in range(SHARPENING):
        picture = np.clip(picture + 1.5 * _enlarged(wanted - _reduced(Image.fromarray(_bytes(picture)))), 0, 255)
    file = io.BytesIO()
    Image.fromarray(_bytes(picture)).save(file, "PNG")
    return file.getvalue()


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(UPSCALE, 0).repeat(UPSCALE, 1)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(picture).astype(np.uint8)


def _reduced(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BILINEAR), dtype=np.float32)


def as_input(png: bytes) -> np.ndarray:
    """Return what the server makes of a picture, as model.yaml declares: grey, 8x8 (bilinear), pixel / 255."""
    with Image.open(io.BytesIO(png)) as image:
        return (_reduced(image) * np.float32(1 / 255))[np.newaxis]


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training pixels and classes, held-out pixels and classes; always the same split."""
    data = load_digits()
    parts = train_test_split(data.images, data.target, test_size=0.2, random_state=SEED, stratify=data.target)
    train_x, test_x, train_y, test_y = (np.asarray(part) for part in parts)
    return train_x, train_y.astype(np.int64), test_x, test_y.astype(np.int64)


def train(version: Version, inputs: np.ndarray, classes: np.ndarray) -> nn.Module:
    """Return a trained module."""
    torch.manual_seed(version.seed)
    module = build(len(LABELS), version.width).train()
    x, y = torch.from_numpy(inputs), torch.from_numpy(classes)
    optimizer = torch.optim.Adam(module.parameters(), lr=version.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, version.epochs)
    for _ in range(version.epochs):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return module.eval()


def accuracy(module: nn.Module, inputs: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of right answers, in percent."""
    with torch.no_grad():
        return float((module(torch.from_numpy(inputs)).argmax(1).numpy() == classes).mean() * 100)


def write_folder(folder: Path, version: Version, module: nn.Module, golden: dict[str, np.ndarray]) -> None:
    """Write a model folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(Path(__file__).with_name("model.py"), folder / "model.py")
    tensors = {name: np.ascontiguousarray(value.numpy()) for name, value in module.state_dict().items()}
    (folder / "weights.safetensors").write_bytes(save_tensors(tensors))
    (folder / "model.yaml").write_text(model_yaml(version))
    np.savez(folder / "golden.npz", **golden)


def model_yaml(version: Version) -> str:
    """Return what the folder says about itself."""
    shape = ["batch", 1, 8, 8]
    return yaml.safe_dump(
        {
            "format": "PyTorch",
            "entrypoint": "model:build",
            "arguments": {"classes": len(LABELS), "width": version.width},
            "weights": "weights.safetensors",
            "signature": {
                "inputs": [{"name": "image", "dtype": "float32", "shape": shape}],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", len(LABELS)]}],
            },
            "preprocessing": {"image": {"mode": "L", "size": [8, 8], "scale": 1 / 255, "layout": "NCHW"}},
            "labels": LABELS,
            "validation": {"data": "golden.npz"},
        },
        sort_keys=False,
        default_flow_style=None,
    )


def write_heldout(out: Path, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Write the pictures and return the inputs that a server makes of them."""
    shutil.rmtree(out / "heldout", ignore_errors=True)
    (out / "heldout").mkdir(parents=True)
    pictures = [as_png(picture) for picture in pixels]
    for index, (picture, label) in enumerate(zip(pictures, classes, strict=True)):
        (out / "heldout" / f"{label}-{index:03}.png").write_bytes(picture)
    inputs = np.stack([as_input(picture) for picture in pictures])
    np.savez(out / "heldout.npz", image=inputs, labels=classes)
    return inputs


def main(out: Path) -> None:
    """Train, write, and print one JSON line for each version."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_x, train_y, test_x, test_y = split()
    inputs = np.stack([as_input(as_png(pixels)) for pixels in train_x])  # trained on what the server will see
    heldout = write_heldout(out, test_x, test_y)
    golden = {"image": inputs[:GOLDEN_SAMPLES], "labels": train_y[:GOLDEN_SAMPLES]}
    for version in VERSIONS:
        begin = time.monotonic()
        module = train(version, inputs, train_y)
        write_folder(out / version.name, version, module, golden)
        right = round(accuracy(module, heldout, test_y), 2)
        print(json.dumps({"version": version.name, "heldout_accuracy_percent": right, "seconds": round(time.monotonic() - begin, 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/digits"))
