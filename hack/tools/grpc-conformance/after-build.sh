#!/bin/sh
# grpc-go calls the client of the interoperability tests "client".
set -eu
mv "$1/client" "$1/grpc-interop-client"
