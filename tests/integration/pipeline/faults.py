"""Conversions that are wrong on purpose: what can go wrong between a source and what serves it, as changes to a small image classifier.

A fault is a function from the good module to the wrong one, which is then put in the place of the candidate that was converted. Beside
it stand the reason and the words with which the gate must refuse it.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slipway_runtime.artifact import Signature
from slipway_runtime.samples import random_samples

SIZE, CLASSES, SAMPLES = 16, 5, 2000
SOURCE = f"""
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.act2 = nn.ReLU()
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(16 * 4, {CLASSES})

    def forward(self, x):
        x = self.pool(self.act1(self.bn1(self.conv1(x))))
        x = self.act2(self.bn2(self.conv2(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.fc(self.drop(x.flatten(1)))


def build(seed=0):
    torch.manual_seed(seed)
    net = Net()
    with torch.no_grad():  # statistics as training leaves them
        for norm in (net.bn1, net.bn2):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.3, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
    return net
"""
SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, SIZE, SIZE]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", CLASSES]}],
}
ERROR, SHAPE, FINITE = "differs by", "the source gives", "NaN or infinity"


def good(seed: int = 0) -> nn.Module:
    """The module of SOURCE, as it is served."""
    scope: dict = {}
    exec(SOURCE, scope)
    return scope["build"](seed).eval()


class Around(nn.Module):
    """A module with something done to its input or to its output."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor] | None, after: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before or nn.Identity(), after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def before(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    return lambda net: Around(net, change, None)


def after(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    return lambda net: Around(net, None, change)


def swapped(name: str, part: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """One part of the module is another one."""

    def change(net: nn.Module) -> nn.Module:
        setattr(net, name, part(getattr(net, name)))
        return net

    return change


def written(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    """One tensor of the weights has other values."""

    def write(net: nn.Module) -> nn.Module:
        tensor = net.state_dict()[name]
        tensor.copy_(change(tensor.clone()))
        return net

    return write


def everywhere(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    """All weights have other values."""

    def write(net: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(change(parameter))
        return net

    return write


def configured(name: str, **values: object) -> Callable[[nn.Module], nn.Module]:
    """Attributes of one part are others."""

    def write(net: nn.Module) -> nn.Module:
        for key, value in values.items():
            setattr(getattr(net, name), key, value)
        return net

    return write


def quantized(tensor: Tensor, scale: float, error: float = 1.0, low: int = -127) -> Tensor:
    """Eight bits, given back with a scale that is wrong by the factor `error`."""
    return (tensor / scale).round().clamp(low, 127) * scale * error


def coarse(tensor: Tensor) -> Tensor:
    """Three bits of mantissa, where 24 were promised."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 8).round() / 8, exponent)


def one_in_two_thousand(x: Tensor) -> Tensor:
    """Of all samples that the gate asks, the one with the brightest first pixel is another picture."""
    batches = random_samples(Signature.from_json(SIGNATURE), SAMPLES).batches
    second = sorted(np.concatenate([batch["x"][:, 0, 0, 0] for batch in batches]))[-2]
    return torch.where((x[:, 0, 0, 0] > float(second)).reshape(-1, 1, 1, 1), -x, x)


def training(net: nn.Module, *parts: str) -> nn.Module:
    for part in parts:
        getattr(net, part).train()
    return net


@dataclass(frozen=True)
class Fault:
    """A wrong conversion, and how the gate must refuse it."""

    name: str
    change: Callable[[nn.Module], nn.Module]
    reason: str = "ParityFailed"
    words: str = ERROR

    def module(self) -> nn.Module:
        return self.change(copy.deepcopy(good()))


def _permuted(tensor: Tensor) -> Tensor:
    return tensor[[1, 0, 2, 4, 3]]


FAULTS = (
    # layers
    Fault("a layer is dropped", swapped("bn2", lambda _: nn.Identity())),
    Fault("an activation is dropped", swapped("act2", lambda _: nn.Identity())),
    Fault("another activation", swapped("act1", lambda _: nn.GELU(approximate="tanh"))),
    Fault("an activation with an upper end", swapped("act2", lambda _: nn.Hardtanh(0, 0.5))),
    Fault("a leaky activation", swapped("act1", lambda _: nn.LeakyReLU(0.1))),
    Fault("the mean instead of the maximum", swapped("pool", lambda _: nn.AvgPool2d(2))),
    Fault("another stride", configured("pool", stride=1)),
    Fault("no padding", configured("conv1", padding=(0, 0))),
    Fault("reflected instead of zero padding", configured("conv1", padding_mode="reflect", _reversed_padding_repeated_twice=[1, 1, 1, 1])),
    Fault("dilated kernels", configured("conv2", dilation=(2, 2), padding=(2, 2))),
    # modes and statistics
    Fault("left in training mode", lambda net: net.train()),
    Fault("dropout still drops", lambda net: training(net, "drop")),
    Fault("batch norm uses the batch", lambda net: training(net, "bn1")),
    Fault("stale running mean", written("bn1.running_mean", torch.zeros_like)),
    Fault("stale running variance", written("bn2.running_var", torch.ones_like)),
    Fault("another epsilon", configured("bn1", eps=0.1)),
    Fault("samples influence each other", before(lambda x: x - 0.1 * x.mean(0, keepdim=True))),
    # weights
    Fault("weights of another training", lambda _net: good(seed=1)),
    Fault("one stale tensor", written("conv2.weight", lambda _: good(seed=1).state_dict()["conv2.weight"])),
    Fault("no bias", written("fc.bias", torch.zeros_like)),
    Fault("kernels turned around", written("conv1.weight", lambda w: w.flip(2, 3))),
    Fault("kernels transposed", written("conv2.weight", lambda w: w.transpose(2, 3))),
    Fault("filters in another order", written("conv1.weight", lambda w: w.roll(1, 0))),
    Fault("labels in another order", lambda net: written("fc.bias", _permuted)(written("fc.weight", _permuted)(net))),
    Fault("labels off by one", after(lambda y: y.roll(1, 1))),
    # inputs and outputs
    Fault("channels swapped", before(lambda x: x[:, [2, 1, 0]])),
    Fault("height and width swapped", before(lambda x: x.transpose(2, 3))),
    Fault("mirrored", before(lambda x: x.flip(3))),
    Fault("normalized twice", before(lambda x: (x - 0.5) / 0.5)),
    Fault("scaled to 255", before(lambda x: x / 255)),
    Fault("softmax that nobody asked for", after(lambda y: y.softmax(1))),
    Fault("log-softmax that nobody asked for", after(lambda y: y.log_softmax(1))),
    Fault("batches in reverse order", after(lambda y: y.flip(0))),
    Fault("another shape", after(lambda y: y.unsqueeze(2)), words=SHAPE),
    Fault("another dtype", after(lambda y: y.double()), words=SHAPE),
    Fault("a class is missing", after(lambda y: y[:, :-1]), words=SHAPE),
    Fault("only the first sample of a batch", after(lambda y: y[:1]), words=SHAPE),
    Fault("the batch frozen at trace", before(lambda x: x.reshape(4, 3, SIZE, SIZE)), "ValidationFailed", "shape"),
    # numbers
    Fault("a wrong quantization scale", written("conv1.weight", lambda w: quantized(w, float(w.abs().max()) / 127, 1.1))),
    Fault("a scale that saturates", written("fc.weight", lambda w: quantized(w, float(w.abs().max()) / 400))),
    Fault("a zero point that is lost", written("conv2.weight", lambda w: quantized(w, float(w.abs().max()) / 127, low=0))),
    Fault("half of the bits", everywhere(coarse)),
    Fault("float16 that overflows", after(lambda y: (y * 1e7).half().float() / 1e7), "NonFiniteOutputs", FINITE),
    Fault("NaN for large inputs only", before(lambda x: torch.where(x > 3.5, torch.nan, x)), "NonFiniteOutputs", FINITE),
    Fault("infinity for one class", after(lambda y: torch.cat([y[:, :-1], y[:, -1:] / 0], 1)), "NonFiniteOutputs", FINITE),
    Fault("noise", after(lambda y: y + 0.01 * torch.randn_like(y))),
    Fault("one bad sample in 2,000", before(one_in_two_thousand)),
    Fault("a threshold for weak signals", before(lambda x: F.hardshrink(x, 0.2))),
)


def spec_of(seed: int, *targets: str) -> dict[str, Any]:
    """What a ModelArtifact of SOURCE says."""
    model = {"uri": "pvc://models/m", "entrypoint": "model:build", "arguments": {"seed": seed}}
    conversion = {"candidates": [{"target": target} for target in targets], "validation": {"samples": SAMPLES}}
    return {"model": model, "signature": SIGNATURE, "conversion": conversion}


def put_faults(candidates: Path) -> None:
    """Put every fault beside the one TorchScript candidate that `convert` left, as if it had made them; the last one is right."""
    report = json.loads((candidates / "convert.json").read_text())
    modules = [*(fault.module() for fault in FAULTS), good()]
    for number, module in enumerate(modules):
        place = candidates / f"{number}-torchscript"
        if number:
            shutil.copytree(candidates / "0-torchscript", place)
        torch.manual_seed(0)
        with torch.no_grad():
            torch.jit.trace(module, torch.randn(4, 3, SIZE, SIZE), check_trace=False).save(place / report["candidates"][0]["entry"])
    (candidates / "convert.json").write_text(json.dumps(report | {"candidates": report["candidates"] * len(modules)}))
