"""Imports what many test processes import, so that its bytecode is there before they begin at once."""

import torch

torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.ones(1, 1),), dynamo=True, verbose=False)
