"""Slipway's model pipeline and inference server."""
