"""The check of exported programs lets pass what torch.export makes of models of many kinds: it must not refuse a good one."""

from __future__ import annotations

import pytest
import torch

from slipway_runtime.torch_files import exported_program, program_module

BATCH = torch.export.Dim("batch")
LENGTH = torch.export.Dim("length", min=4, max=128)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


class Encoder(torch.nn.Module):
    """Embeddings, attention with a padding mask, a length that varies."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids, mask):
        hidden = self.layers(self.words(ids), src_key_padding_mask=mask == 0)
        return {"last": hidden, "pooled": (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)}


class Pictures(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2))

    def forward(self, x):
        return self.layers(torch.nn.functional.interpolate(x, scale_factor=1.5, mode="bilinear")).flatten(1)


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(8.0))

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda a: a * 2 + self.table, lambda a: a - 1, (x,))


class Counted(torch.nn.Module):
    """Sizes that depend on values, and checks of them."""

    def forward(self, x):
        rows = x[x[:, 0] > 0]
        torch._check(rows.shape[0] < 1000)
        return rows.sum(0), torch.tensor([1.0, 2.0]) + x.shape[0]


class Nested(torch.nn.Module):
    def forward(self, pair, *, scale):
        return (pair[0] * scale, [pair[1] + 1, {"sum": pair[0].sum(1)}])


X = torch.randn(4, 8)
IDS, MASK = torch.randint(0, 50, (2, 9)), torch.ones(2, 9)
KINDS = {
    "recurrent": lambda: torch.export.export(Recurrent().eval(), (torch.randn(2, 6, 8),), dynamic_shapes=({0: BATCH},)),
    "encoder": lambda: torch.export.export(Encoder().eval(), (IDS, MASK), dynamic_shapes=({0: BATCH, 1: LENGTH}, {0: BATCH, 1: LENGTH})),
    "pictures": lambda: torch.export.export(Pictures().eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: BATCH, 2: LENGTH},)),
    "branches": lambda: torch.export.export(Branches(), (X,), dynamic_shapes=({0: BATCH},)),
    "counted": lambda: torch.export.export(Counted(), (X,), dynamic_shapes=({0: BATCH},)),
    "nested": lambda: torch.export.export(Nested(), ((X, X),), {"scale": torch.ones(1)}),
    "strict": lambda: torch.export.export(Pictures().eval(), (torch.randn(2, 3, 16, 16),), strict=True),
    "automatic dims": lambda: torch.export.export(Encoder().eval(), (IDS, MASK), dynamic_shapes=((torch.export.Dim.AUTO,) * 2,) * 2),
    "core operators": lambda: torch.export.export(Encoder().eval(), (IDS, MASK)).run_decompositions(),
    "16 bits": lambda: torch.export.export(Pictures().eval().bfloat16(), (torch.randn(2, 3, 16, 16).bfloat16(),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_program_is_loaded(tmp_path, kind):
    torch.manual_seed(0)
    program = KINDS[kind]()
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = exported_program(tmp_path / "model.pt2", "model.pt2")
    args, kwargs = program.example_inputs
    for got, want in zip(*(torch.utils._pytree.tree_leaves(each.module()(*args, **kwargs)) for each in (loaded, program)), strict=True):
        torch.testing.assert_close(got, want)
    assert not program_module(tmp_path / "model.pt2", "model.pt2").training
