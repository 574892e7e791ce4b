"""A call that runs alone has all CPUs; calls that run side by side have one each."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from slipway_runtime.serve.backends import Backend
from slipway_runtime.serve.tensors import Array, Tensors


class LoneBackend:
    """Two of one engine, over the same files: `narrow` for calls beside others, `wide`, with a thread for each CPU, for a call alone.

    Engines fix the threads of a call when they load. With one for each call a lone client waits for one CPU while the others idle; with all
    for each, calls side by side ask for more CPUs than there are, and a pod that does that is throttled.
    """

    def __init__(self, narrow: Backend, wide: Backend) -> None:
        """Take both, which this closes."""
        self._narrow, self._wide = narrow, wide
        self._guard, self._running = threading.Lock(), 0
        self._has_company = self._had_company = False
        self.platform, self.lanes = narrow.platform, narrow.lanes

    def infer(self, inputs: Tensors) -> Tensors:
        """Run the model; on all CPUs when no other call runs, and none did beside those before it.

        Under load there are moments without a call, too: one that began wide there would soon share the CPUs with narrow ones.
        """
        with self._guard:
            self._has_company = self._running > 0
            backend = self._narrow if self._has_company or self._had_company else self._wide
            self._running += 1
        try:
            return backend.infer(inputs)
        finally:
            with self._guard:
                self._running -= 1
                if not self._running:
                    self._had_company, self._has_company = self._has_company, False

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Memory that the engine likes to read."""
        return self._narrow.empty(shape, dtype)

    def close(self) -> None:
        """Free both."""
        self._wide.close()
        self._narrow.close()
