"""`python -m slipway.cli`."""

from slipway.cli.main import main

main()
