"""The messages of the protocol over gRPC, from oip.binpb (compiled from oip.proto by `make generate`).

They live in a pool of their own: user code in the same process (a custom model, a test) may import another package's
generated code for the same protocol, and two files that define the same names in one pool are an error.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
DESCRIPTORS = Path(__file__).with_name("oip.binpb")


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message, by its name in the package `inference`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))
