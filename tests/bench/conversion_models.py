"""The models of conversion_bench.py, with seeded random weights but for MiniLM's; this file is their model folder's model.py.

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
    "minilm": signature(
        [tensor("ids", ["batch", "length"], "int64"), tensor("mask", ["batch", "length"], "int64")], tensor("embedding", ["batch", 384])
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


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2 (Wang et al. 2020; sbert.net): BERT with 6 layers of width 384, the mean of the tokens that are there, length 1.

    The names of the parts are those of its weights, so that they load as they are.
    """

    HEADS = 12

    def __init__(self) -> None:
        super().__init__()
        norm = lambda: nn.LayerNorm(384, eps=1e-12)  # noqa: E731
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(30522, 384),
                "position_embeddings": nn.Embedding(512, 384),
                "token_type_embeddings": nn.Embedding(2, 384),
                "LayerNorm": norm(),
            }
        )
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None])

        def output(width: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(width, 384), "LayerNorm": norm()})

        def layer() -> nn.ModuleDict:
            own = nn.ModuleDict({name: nn.Linear(384, 384) for name in ("query", "key", "value")})
            attention = nn.ModuleDict({"self": own, "output": output(384)})
            return nn.ModuleDict(
                {
                    "attention": attention,
                    "intermediate": nn.ModuleDict({"dense": nn.Linear(384, 1536)}),
                    "output": output(1536),
                }
            )

        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(6))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(384, 384)})  # among the weights, and not used by sentence embeddings

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        parts = self.embeddings
        types = parts["token_type_embeddings"].weight[0]
        x = parts["LayerNorm"](parts["word_embeddings"](ids) + parts["position_embeddings"](parts.position_ids[:, : ids.shape[1]]) + types)
        there = mask.to(x.dtype)
        hidden = ((1.0 - there) * -1e4)[:, None, None, :]  # finite: float16 has it
        for layer in self.encoder["layer"]:
            own, out = layer["attention"]["self"], layer["attention"]["output"]
            query, key, value = (own[name](x).unflatten(2, (self.HEADS, 32)).transpose(1, 2) for name in ("query", "key", "value"))
            told = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=hidden).transpose(1, 2).flatten(2)
            x = out["LayerNorm"](out["dense"](told) + x)
            x = layer["output"]["LayerNorm"](layer["output"]["dense"](nn.functional.gelu(layer["intermediate"]["dense"](x))) + x)
        weights = there.unsqueeze(2)
        return nn.functional.normalize((x * weights).sum(1) / weights.sum(1), dim=1)


def words(texts: list[str], vocabulary: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask [texts, longest], int64, of BERT's WordPiece for lower-case text without accents (Wu et al. 2016)."""
    import re  # noqa: PLC0415

    known = {word: number for number, word in enumerate(vocabulary)}
    rows = []
    for text in texts:
        row = [known["[CLS]"]]
        for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower()):
            start = 0
            while start < len(word):
                pieces = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
                found = next((piece for piece in pieces if piece in known), None)
                row.append(known[found or "[UNK]"])
                start = len(word) if found is None else start + len(found.removeprefix("##") if start else found)
        rows.append(torch.tensor([*row[:511], known["[SEP]"]]))
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()


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
    "minilm": MiniLm,
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
