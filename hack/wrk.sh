#!/bin/bash
# The load generator of the serving bench: Debian's package.
source "$(dirname "$0")/lib.sh"
command -v wrk >/dev/null || apt_install wrk
