"""Slipway: from a PyTorch checkpoint to production on Kubernetes with one manifest."""
