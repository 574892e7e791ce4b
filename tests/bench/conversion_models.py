"""The models of conversion_bench.py, with seeded random weights; this file is their model folder's model.py.

Random weights leave a network without opinions: its classes lie close to each other, and its batch norms have seen nothing. So `build` lets
the norms see a few random batches, as training would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 200


def tensor(name: str, shape: list[str | int], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


def signature(inputs: list[dict[str, Any]], *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": inputs, "outputs": list(outputs)}


def images(size: int) -> dict[str, Any]:
    return signature([tensor("x", ["batch", 3, size, size])], tensor("y", ["batch", 1000]))


SIGNATURES = {
    "resnet18": images(224),
    "mobilenet_v3_small": images(224),
    "vit": images(64),
    "lstm": signature([tensor("x", ["batch", "length", 16])], tensor("y", ["batch", 8])),
    "branch": signature([tensor("x", ["batch", 16])], tensor("y", ["batch", 4])),
    "two_in_two_out": signature(
        [tensor("image", ["batch", 1, 16, 16]), tensor("table", ["batch", 12])],
        tensor("score", ["batch", 3]),
        tensor("mask", ["batch", 1, 16, 16]),
    ),
    "encoder": signature(
        [tensor("ids", ["batch", "length"], "int64"), tensor("mask", ["batch", "length"], "int64")], tensor("embedding", ["batch", 64])
    ),
    "custom_op": signature([tensor("x", ["batch", 16])], tensor("y", ["batch", 4])),
}


def resnet18() -> nn.Module:
    """He et al. 2015, 11.7 M parameters."""
    from torchvision.models import resnet18 as make  # noqa: PLC0415

    return make()


def mobilenet_v3_small() -> nn.Module:
    """Howard et al. 2019, 2.5 M parameters."""
    from torchvision.models import mobilenet_v3_small as make  # noqa: PLC0415

    return make()


def vit() -> nn.Module:
    """Dosovitskiy et al. 2020 in torchvision's form, small: 64 patches, 4 layers of width 128, 1.0 M parameters."""
    from torchvision.models import VisionTransformer  # noqa: PLC0415

    net = VisionTransformer(image_size=64, patch_size=8, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=256)
    nn.init.normal_(net.heads.head.weight, std=0.1)  # torchvision's is zero, and so would be the outputs
    return net


class Lstm(nn.Module):
    """Sequences of any length; the last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Branch(nn.Module):
    """Control flow that depends on values; no random sample takes the second way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if bool(x.abs().max() > 50):
            y = self.second(x)
        return y


class TwoInTwoOut(nn.Module):
    """A picture and a row of a table in, a score and a mask out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.table = nn.Linear(12, 8)
        self.score, self.mask = nn.Linear(8, 3), nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        both = self.body(image) + self.table(table)[:, :, None, None]
        return self.score(both.mean((2, 3))), self.mask(both)


class Encoder(nn.Module):
    """A sentence encoder: two transformer layers, a padding mask, the mean of the tokens that are there. The first token always is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 64)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu") for _ in range(2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        there = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)
        x = self.embed(ids)
        hidden = (1.0 - there.to(x.dtype)) * -1e4  # finite: float16 has it
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        weights = there.to(x.dtype).unsqueeze(2)
        return (x * weights).sum(1) / weights.sum(1)


@torch.library.custom_op("bench::wave", mutates_args=())
def wave(x: Tensor) -> Tensor:
    """An operator of the user's own, with no shape function: no exporter can see through it."""
    return torch.sin(x) * torch.exp(-x * x)


class CustomOp(nn.Module):
    """An operator that only the model's own code knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(wave(self.first(x)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "mobilenet_v3_small": mobilenet_v3_small,
    "vit": vit,
    "lstm": Lstm,
    "branch": Branch,
    "two_in_two_out": TwoInTwoOut,
    "encoder": Encoder,
    "custom_op": CustomOp,
}


def sample(name: str, rows: int, generator: torch.Generator) -> list[Tensor]:
    """Random inputs as the pipeline makes them: standard normal, and 0 or 1 for integers; dims with names other than batch are 32."""
    made = []
    for spec in SIGNATURES[name]["inputs"]:
        shape = [rows, *(dim if isinstance(dim, int) else 32 for dim in spec["shape"][1:])]
        is_float = spec["dtype"] == "float32"
        made.append(torch.randn(shape, generator=generator) if is_float else torch.randint(0, 2, shape, generator=generator))
    return made


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = MODELS[name]()
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _ in range(4):
                net.train()(*sample(name, 16, generator))
    return net.eval()
