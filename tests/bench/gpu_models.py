"""The models of gpu_bench.py, in plain torch with seeded random weights; this file is their model folder's model.py.

resnet18 (He et al. 2015, 11.7 M parameters) and ViT-B/16 (Dosovitskiy et al. 2020, 86.6 M) take images of 224 pixels, the encoder 128
tokens: 6 layers, width 512, 8 heads, 2048 hidden, 23.2 M parameters with its table of 8192 tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

TOKENS, LENGTH = 8192, 128
IMAGE = ["batch", 3, 224, 224]
SIGNATURES = {
    "resnet18": ("float32", IMAGE, 1000),
    "resnet18-uint8": ("uint8", IMAGE, 1000),
    "vit-b": ("float32", IMAGE, 1000),
    "encoder": ("int64", ["batch", LENGTH], 10),
}


def signature(name: str) -> dict[str, list[dict[str, object]]]:
    """As model.yaml has it."""
    dtype, shape, classes = SIGNATURES[name]
    return {
        "inputs": [{"name": "x", "dtype": dtype, "shape": shape}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", classes]}],
    }


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, 3, stride), nn.ReLU(), conv(outputs, outputs, 3))
        self.short = nn.Identity() if stride == 1 and inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet18() -> nn.Module:
    blocks = []
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (256, 512)):
        blocks += [Residual(inputs, outputs, 1 if inputs == outputs else 2), Residual(outputs, outputs, 1)]
    stem = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Layer(nn.Module):
    """A transformer layer, norms first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, 768) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 197, 768) * 0.02)
        self.layers = nn.Sequential(*(Layer(768, 12, 3072) for _ in range(12)), nn.LayerNorm(768))
        self.head = nn.Linear(768, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.layers(x)[:, 0])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(TOKENS, 512), nn.Embedding(LENGTH, 512)
        self.layers = nn.Sequential(*(Layer(512, 8, 2048) for _ in range(6)), nn.LayerNorm(512))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))).mean(1))


class Pixels(nn.Module):
    """Takes bytes instead of floats: a quarter of the data to send and to copy, normalised where it is computed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(next(self.inner.parameters()).dtype) / 255 - 0.5)


class Cast(nn.Module):
    """Computes in another dtype; float32 comes out, and floats come in, as in the converter's candidates."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(self.dtype) if x.is_floating_point() else x).float()


def build(name: str, dtype: str = "float32") -> nn.Module:
    """The entrypoint."""
    torch.manual_seed(1)
    made = {"resnet18": resnet18, "vit-b": ViT, "encoder": Encoder}[name.removesuffix("-uint8")]()
    if name.endswith("-uint8"):
        made = Pixels(made)
    return made if dtype == "float32" else Cast(made, getattr(torch, dtype))
