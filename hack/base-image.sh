#!/bin/bash
# Prints the base image of the project's images, given to the Dockerfiles as BASE_IMAGE. Where kind's upstream images can be
# pulled, that is the Dockerfiles' own default (nothing is printed); elsewhere Debian bookworm with its Python 3.11 and the
# host's CA bundle, put together by debootstrap.
source "$(dirname "$0")/lib.sh"
source "$HACK/engine.sh"
SUITE=bookworm PACKAGES=python3,python3-venv,libseccomp2,ca-certificates
CA=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

build() {
  local root=$CACHE/base-root; rm -rf "$root"; mkdir -p "$CACHE/debs"; apt_install debootstrap
  debootstrap --variant=minbase --cache-dir="$CACHE/debs" --include=$PACKAGES $SUITE "$root" >"$CACHE/debootstrap-base.log"
  cp "$CA" "$root/etc/ssl/certs/ca-certificates.crt"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/log/*
  tar -C "$root" --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . | docker import -c 'CMD ["/bin/sh"]' - "$1" >/dev/null
  rm -rf "$root"
}

use_engine
[ "$(engine_kind)" = own ] || exit 0
NAME=slipway-base:$( (hash_of hack/base-image.sh; sha256sum <"$CA") | sha256sum | cut -c1-12)
docker image inspect "$NAME" >/dev/null 2>&1 || timed "build base image" locked base-image build "$NAME"
echo "$NAME"
