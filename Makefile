# Slipway. `make help` lists the targets; hack/ holds what they call.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
V := .venv/bin
export PATH := $(CURDIR)/build/bin:$(PATH)
export PYTHONSAFEPATH := 1
# Bytecode outside the clone: the next clone at this place finds it. Compiling what torch.export imports takes ten seconds a process.
unexport PYTHONDONTWRITEBYTECODE
CACHE := $(or $(SLIPWAY_CACHE),$(HOME)/.cache/slipway)
export PYTHONPYCACHEPREFIX := $(CACHE)/pycache
PYTEST_ARGS ?=
BENCH_ARGS ?=
TOOLS := kubernetes registry registry-gc helm versitygw gateway-api

.PHONY: help
help: ## What the targets do
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Work
.PHONY: setup lint type bytecode unit integration integration-api integration-pipeline e2e nightly test
SETUP_INPUTS := hack/requirements-dev.txt hack/requirements-build.txt operator/pyproject.toml runtime-image/pyproject.toml $(shell find runtime-image/http2 -type f)
setup: .venv/.stamp ## The virtual environment, from the hashed lock file
.venv/.stamp: $(SETUP_INPUTS) hack/setup.sh
	@hack/setup.sh

lint: setup ## Style, imports, spelling, YAML, shell
	$(V)/ruff check .
	$(V)/ruff format --check .
	$(V)/lint-imports
	$(V)/codespell -L uptodate,aks,notin --skip='*.lock,*/requirements*.txt,*.csv,*.json,LICENSE,go.*' operator runtime-image charts docs hack tests examples *.md
	$(V)/yamllint -c hack/yamllint.yaml .
	@if command -v shellcheck >/dev/null; then shellcheck -x -S warning hack/*.sh .ci/run; else for f in hack/*.sh; do bash -n $$f; done; fi

type: setup ## mypy, strict
	$(V)/mypy --cache-dir $(CACHE)/mypy operator/src runtime-image/src

# In an empty cache each of the processes that begin at once would compile it anew: a quarter of a minute of CPU for what torch.export imports.
bytecode: setup ## Of what many tests import
	@done=$(CACHE)/pycache$(CURDIR)/$$(cat .venv/.stamp).done; [ -e $$done ] || { $(V)/python hack/bytecode.py && mkdir -p "$$(dirname $$done)" && touch $$done; }

unit: setup ## No cluster, no network
	@hack/prometheus.sh install
	$(V)/python -m pytest tests/unit -m 'not nightly' -n 2 $(PYTEST_ARGS)

integration: integration-api integration-pipeline ## Against a real API server (hack/apiserver.sh)

integration-api: setup
	@hack/tools.sh $(TOOLS)
	$(V)/python -m pytest tests/integration --ignore tests/integration/pipeline -m 'not nightly' -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

integration-pipeline: setup
	@hack/tools.sh kubernetes registry versitygw
	$(V)/python -m pytest tests/integration/pipeline -m 'not nightly' -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

e2e: setup images cluster ## On the kind cluster
	@hack/pulled.sh
	$(V)/python -m pytest tests/e2e -m 'not nightly and not last' -n 5 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	$(V)/python -m pytest tests/e2e -m 'not nightly and last' $(PYTEST_ARGS)

nightly: setup libtorch images cluster ## What takes too long for every change: the LibTorch server and its sanitizers, other systems' clients, bad canaries, every precision
	@hack/tools.sh $(TOOLS) fake-gcs-server grpc-conformance
	$(V)/python -m pytest tests/unit tests/integration -m nightly --timeout=1800 $(PYTEST_ARGS)
	@hack/pulled.sh
	$(V)/python -m pytest tests/e2e -m nightly $(PYTEST_ARGS)

# To push images and to unpack Debian is to wait, and tools are compiled meanwhile. Beside what promises something in seconds, or waits half
# of its time, runs with what that leaves what only computes, and first the cluster is made.
test: ## All of the above but nightly, and that generated files are current
	@hack/timed.sh setup then images node-image -- verify lint type bytecode tools then integration-api e2e -- cluster unit integration-pipeline

##@ Run
.PHONY: demo demo-canary cluster cluster-down node-image images libtorch tools
demo: setup images cluster ## The whole tour: convert, serve, roll out, with the time of each step
	@hack/pulled.sh
	$(V)/python examples/digits/demo.py

demo-canary: setup images cluster ## A canary behind a real gateway, with every request counted; draws build/canary.png
	@hack/pulled.sh
	$(V)/python examples/digits/canary.py

cluster: ## A kind cluster, one control plane and two workers: build/kubeconfig
	@hack/cluster.sh up

node-image: ## What a new cluster is made of: Kubernetes in a node, and for its workers the project's images, unpacked
	@hack/cluster.sh prepare

cluster-down: ## Removes what "make cluster" made
	@hack/cluster.sh down

libtorch: setup ## The LibTorch C++ server: build/libtorch
	@hack/libtorch.sh >/dev/null

tools: ## What the cluster and the tests are made of, compiled once: build/bin
	@hack/tools.sh && hack/tools.sh $(TOOLS)

images: ## Builds and pushes the images that changed: build/images.env
	@hack/images.sh

##@ Generate
.PHONY: generate verify bench bench-attacks bench-conversion bench-rollouts bench-serving clean
OIP := runtime-image/src/slipway_runtime/serve/oip
GENERATED := crds charts/slipway/files/crds docs/reference $(OIP).binpb
generate: setup ## CRDs and reference pages from the models, and the compiled protocol
	$(V)/python -m slipway.crdgen
	$(V)/python -m grpc_tools.protoc -I$(dir $(OIP)) --descriptor_set_out=$(OIP).binpb oip.proto

verify: generate ## Fails when a generated file is not what is checked in
	@git diff --exit-code -- $(GENERATED)
	@new=$$(git ls-files --others --exclude-standard -- $(GENERATED)); [ -z "$$new" ] || { echo "not checked in: $$new"; exit 1; }

bench: setup libtorch ## The measurements in tests/bench, each beside its peer
	@hack/tools.sh kubernetes
	@for bench in tests/bench/{reconcile,libtorch}_bench.py; do echo "==> $$bench"; $(V)/python $$bench; done

bench-serving: setup ## Our server beside those that users would take instead, an hour: docs/benchmarks/serving.md ($$TRITON names an installation of Triton)
	@hack/wrk.sh && hack/tools.sh ghz
	rm -f docs/benchmarks/serving.jsonl
	$(V)/python tests/bench/serving_bench.py run $(BENCH_ARGS)
	$(V)/python tests/bench/serving_bench.py report

bench-attacks: setup ## What good clients notice of hostile ones: docs/benchmarks/attacks.md
	$(V)/python tests/bench/attack_bench.py run
	$(V)/python tests/bench/attack_bench.py report

bench-conversion: setup ## Every target and precision for ten models, and the seeded faults: docs/conversion-matrix.md
	rm -f docs/benchmarks/conversion.jsonl
	$(V)/python tests/bench/conversion_bench.py run
	$(V)/python tests/bench/conversion_bench.py report

bench-rollouts: setup images cluster ## A canary by Slipway and by Argo Rollouts on the same cluster: docs/benchmarks/rollouts.md
	@hack/tools.sh argo-rollouts
	rm -f docs/benchmarks/rollouts.jsonl
	PYTHONPATH=tests:examples/digits $(V)/python tests/bench/rollout_bench.py run
	PYTHONPATH=tests:examples/digits $(V)/python tests/bench/rollout_bench.py report

clean: ## Build products of this clone (the cluster and the cache stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist out build/build-*.log
