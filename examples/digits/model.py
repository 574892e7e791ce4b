"""A small CNN for 8x8 digits. `train.py` copies this file into the model folder; `model.yaml` names `build`."""

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Two convolutions, a pooling step and a linear layer; logits of the classes."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width * 16, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits, [batch, classes]."""
        return self.classify(self.features(image))


def build(classes: int = 10, width: int = 16) -> nn.Module:
    """Return the untrained module; the pipeline loads the weights into it."""
    return DigitsNet(classes, width).eval()
