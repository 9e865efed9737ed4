SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# One set of flags for all that is released, so that these builds share a build cache.
RELEASE := CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

# The tools are compiled once for each set of pins, whose hash counts and not their date,
# and for each compiler: golangci-lint refuses code for a newer Go than its own.
TOOLS := bin/tools/.built-$(shell { go env GOVERSION && cat hack/tools.mod hack/tools.sum; } | sha256sum | cut -c-16)
LINT  := bin/tools/golangci-lint
STAGE := hack/stage.sh

# How often `make test-race` runs every test.
COUNT ?= 5

##@ Use

.PHONY: help
help: ## Show this text
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## Build bin/fairlead, static
	$(RELEASE) -o bin/fairlead .

.PHONY: control-plane
control-plane: ## Build etcd, kube-apiserver, kubectl and kube-proxy for the tests (5 minutes, once)
	cd test/controlplane && go run . -out $(CURDIR)/bin/controlplane

.PHONY: demo
demo: build control-plane ## Run fairlead in network namespaces on this machine; ONCE=1 ends by itself
	$(RELEASE) -o bin/demo ./test/demo
	bin/demo $(if $(filter-out 0,$(ONCE)),-once)

##@ Change

.PHONY: generate
generate: $(TOOLS) ## Write the deep copies of api/
	bin/tools/controller-gen object paths=./api/...

.PHONY: manifests
manifests: $(TOOLS) ## Write CRDs, roles and webhooks from markers, for config/ and the chart
	hack/manifests.sh

.PHONY: fmt
fmt: $(TOOLS) ## Format the Go code
	$(LINT) fmt

.PHONY: lint
lint: $(TOOLS) ## Lint the Go code
	$(LINT) run

##@ Test

.PHONY: verify
verify: $(TOOLS) ## Show that nothing generated has drifted, and lint code, chart and modules
	@code=0; \
	$(STAGE) "verify: generated files" hack/verify-generated.sh || code=1; \
	$(STAGE) "verify: format" $(LINT) fmt --diff || code=1; \
	$(STAGE) "verify: lint" $(LINT) run || code=1; \
	$(STAGE) "verify: chart and bases" hack/verify-chart.sh || code=1; \
	$(STAGE) "verify: modules" hack/verify-modules.sh || code=1; \
	exit $$code # all faults at once

# The plain and the race build are two builds of everything. lint and vet read the first,
# the tests run the second, and nothing here builds a third.
.PHONY: test
test: ## All that CI asks for: verify, vet, every test with the race detector, shuffled
	@$(STAGE) "tools" $(MAKE) --no-print-directory $(TOOLS)
	@$(MAKE) --no-print-directory verify
	@$(STAGE) "control plane" $(MAKE) --no-print-directory control-plane
	@$(STAGE) "vet" go vet ./...
	@$(STAGE) "test" go test -race -shuffle=on -timeout=15m ./...

.PHONY: test-race
test-race: $(TOOLS) control-plane ## Run every test COUNT times with the race detector, in random order
	hack/test-race.sh $(COUNT)

.PHONY: bench
bench: control-plane ## Run the benchmarks
	go test -run '^$$' -bench . ./...

# Services x endpoints of each. 50000x10 takes half an hour. nft needs a larger buffer for
# what kube-proxy writes than a user namespace may have: this wants root.
SIZES ?= 1000x10 10000x10 1000x100 50000x10

.PHONY: bench-dataplane
bench-dataplane: control-plane ## Measure the dataplane beside kube-proxy; SIZES="1000x10" for less
	NETLAB_USERNS=off SIZES="$(SIZES)" go test -run '^$$' -bench Dataplane -timeout 0 -v ./test/bench

# All four in one step: what they share is compiled once.
$(TOOLS):
	rm -f bin/tools/.built-*
	CGO_ENABLED=0 go build -modfile=hack/tools.mod -trimpath -ldflags "-s -w" -o bin/tools/ tool
	touch $@
