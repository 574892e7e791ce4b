"""`python -m slipway_runtime.shadow`: the same as `slipway-runtime shadow`."""

from __future__ import annotations

import sys

from slipway_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["shadow", *sys.argv[1:]]))
