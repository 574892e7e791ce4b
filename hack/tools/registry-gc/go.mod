module slipway.dev/hack/tools/registry-gc

go 1.24.0

tool slipway.dev/hack/tools/registry-gc
