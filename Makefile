# Agnes. `make` lists the targets; `make run` and `make test` are the two to begin with.
# GNU make 4.3 or newer, bash, Go, gcc and git; `make deps` installs what is missing.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A release sets VERSION (YYYY.MM.N) and CHANNEL (dev or stable); other builds say "dev".
VERSION ?=
CHANNEL ?=
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
# The DuckDB driver has its conversion to Arrow behind a tag.
TAGS    := duckdb_arrow
INFO    := github.com/keboola/agnes-the-ai-analyst/internal/buildinfo
# The image is built with STRIP='-s -w': no symbols for debuggers, a third smaller.
STRIP   ?=
LDFLAGS := $(STRIP) -X $(INFO).version=$(VERSION) -X $(INFO).channel=$(CHANNEL) -X $(INFO).commit=$(COMMIT)
BUILD   := go build -tags $(TAGS) -trimpath -ldflags '$(LDFLAGS)'

# Of `make run`.
DATA_DIR ?= .agnes/data
CSV_DIR  ?= examples/shop
ADDR     ?=

# Of the tests: e.g. `make test TESTFLAGS='-run TestPublish -v'`.
TESTFLAGS ?=
SOAK      ?= 1h
E2E_TAGS  := $(TAGS),e2e,realdata
ALL_TAGS  := $(E2E_TAGS),bench

TOOLS := $(CURDIR)/.tools/bin
# Where tests of the real-data tier and benchmarks find what `make deps-test` fetched.
export AGNES_TEST_DATA    ?= $(CURDIR)/.tools/data
export AGNES_BENCH_DUCKDB ?= $(TOOLS)/duckdb

##@ First steps

.PHONY: help
help: ## List all targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Build, then start an instance on :8000 over the sample shop (DATA_DIR=, CSV_DIR=, ADDR=)
	@exec bin/agnes serve --data-dir '$(DATA_DIR)' --csv-dir '$(CSV_DIR)' $(if $(ADDR),--addr '$(ADDR)')

.PHONY: test
test: ## Run all tests but whole stories; those that mount a disk are skipped unless root runs them (TESTFLAGS=)
	@go test -tags $(TAGS) $(TESTFLAGS) ./...

##@ Building

.PHONY: deps
deps: ## Install what building needs on Debian or Ubuntu; says what and why
	@scripts/deps.sh

.PHONY: deps-test
deps-test: ## Also fetch test data, the DuckDB command line and extensions into .tools/
	@scripts/deps.sh --test

.PHONY: build
build: agnes ## Build bin/agnes, bin/agnesctl and bin/release-bot
	CGO_ENABLED=0 $(BUILD) -o bin/ ./cmd/agnesctl ./cmd/release-bot

.PHONY: agnes
agnes: ## Build bin/agnes alone
	@mkdir -p bin
	CGO_ENABLED=1 $(BUILD) -o bin/ ./cmd/agnes

# For scripts/base-images.sh: what the compiler's cache holds of these builds.
.PHONY: exports
exports:
	@go list -export -deps -trimpath -tags $(TAGS) -f '{{.Export}}' ./cmd/agnes
	@CGO_ENABLED=0 go list -export -deps -trimpath -tags $(TAGS) -f '{{.Export}}' ./cmd/agnesctl ./cmd/release-bot

.PHONY: agnesctl
agnesctl: ## Build bin/agnesctl alone: no C compiler needed
	@mkdir -p bin
	CGO_ENABLED=0 $(BUILD) -o bin/ ./cmd/agnesctl

DIST := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

.PHONY: dist
dist: ## Build the static programs for every platform into dist/, with SHA256SUMS (VERSION=, CHANNEL=)
	@rm -rf dist && mkdir -p dist
	@for p in $(DIST); do for name in agnesctl release-bot; do \
	  echo "dist/$${name}_$${p/\//_}"; \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(BUILD) -o "dist/$${name}_$${p/\//_}" ./cmd/$$name; \
	done; done
	@cd dist && sha256sum * >SHA256SUMS

# Of the newest migration: what a database of this build has.
SCHEMA = $(shell ls agent/state/migrations | sed -n 's/^0*\([1-9][0-9]*\)_.*/\1/p' | sort -n | tail -n1)

.PHONY: labels
labels: ## Print the image's labels as the output of a workflow's step (VERSION=, CHANNEL=)
	@echo 'labels<<END-OF-LABELS'
	@echo 'org.opencontainers.image.version=$(VERSION)'
	@echo 'org.opencontainers.image.revision=$(COMMIT)'
	@echo 'org.opencontainers.image.source=https://$(shell go list -m)'
	@echo "org.opencontainers.image.created=$$(git log -1 --format=%cI $(COMMIT))"
	@echo 'io.agnes.channel=$(CHANNEL)'
	@echo 'io.agnes.schema-version=$(SCHEMA)'
	@echo 'END-OF-LABELS'

# Of `make image`.
IMAGE      ?= agnes
EXTENSIONS ?=
BUILDFLAGS ?=

.PHONY: image
image: ## Build the images agnes:slim and agnes:full and hold their sizes to the bars (IMAGE=, VERSION=, EXTENSIONS=, BUILDFLAGS=)
	@$(MAKE) --no-print-directory labels | grep -v LABELS | \
	  IMAGE='$(IMAGE)' VERSION='$(VERSION)' CHANNEL='$(CHANNEL)' COMMIT='$(COMMIT)' EXTENSIONS='$(EXTENSIONS)' BUILDFLAGS='$(BUILDFLAGS)' scripts/image.sh

.PHONY: clean
clean: ## Remove what was built; keeps .agnes/ (data of `make run`) and .tools/
	rm -rf bin dist coverage.out

##@ Checking

.PHONY: check
check: lint vet rules tidy fresh ## Format, lint, import rules, generated files, go.mod: all that CI checks before the tests

.PHONY: lint
lint: $(TOOLS)/golangci-lint $(TOOLS)/actionlint ## Formatting, static analysis, workflows
	$(TOOLS)/golangci-lint fmt --diff
	$(TOOLS)/golangci-lint run
	$(TOOLS)/actionlint

.PHONY: fmt
fmt: $(TOOLS)/golangci-lint ## Format all Go files
	$(TOOLS)/golangci-lint fmt

.PHONY: vet
vet: ## Vet the tests of every tier, those behind build tags too
	go vet -tags $(TAGS) ./...
	go vet -tags $(ALL_TAGS) ./...

.PHONY: rules
rules: ## Prove the import rules and what each binary links
	go test ./internal/depcheck

.PHONY: tidy
tidy: ## Prove that go.mod and go.sum need no change
	go mod tidy -diff

.PHONY: fresh
fresh: ## Prove that `make gen` changes nothing
	@scripts/fresh.sh

.PHONY: vuln
vuln: $(TOOLS)/govulncheck ## Look for known vulnerabilities in what is linked (needs the internet)
	$(TOOLS)/govulncheck ./...

# Of `make contract`: one connector's folder, or ... for all.
CONNECTOR ?= ...

.PHONY: contract
contract: ## Prove that connectors keep the extract contract (CONNECTOR=)
	go test -tags $(TAGS) -count=1 ./connectors ./connectors/$(CONNECTOR)

.PHONY: e2e
e2e: build ## Run whole stories on the binaries and on public data, and the long soak; `make deps-test` first
	go test -tags $(E2E_TAGS) -count=1 -timeout 45m -parallel 3 $(TESTFLAGS) ./e2e/...
	go test -tags $(E2E_TAGS) -count=1 -timeout 30m -run TestBenchSoak $(TESTFLAGS) ./agent/server

.PHONY: e2e-release
e2e-release: build ## Release two images, one of them bad, and take it back: claim, publish, canary, rollback, alert
	go test -tags $(E2E_TAGS) -count=1 -timeout 30m -v -run TestABadReleaseIsTakenBackEverywhere $(TESTFLAGS) ./e2e

# Of `make soak`: how often each drill, and how long a fleet is watched.
ROUNDS ?= 30
HOURS  ?= 1
DRILLS := TestACanary|TestADeploy|TestAHost|TestABadRelease

.PHONY: soak
soak: build ## Repeat every drill of a deploy ROUNDS= times (30; hours), watch 10,000 instances for HOURS= (1); the logs are kept in e2e/testdata
	@mkdir -p e2e/testdata
	@{ echo "$(ROUNDS) rounds of $$(git rev-parse HEAD), begun $$(date -u +%FT%TZ)"; \
	  go test -tags $(E2E_TAGS) -count=$(ROUNDS) -timeout 72h -v -run '$(DRILLS)' ./e2e 2>&1 | grep -E '^ *(---|ok|FAIL|PASS|panic)'; } | tee -a e2e/testdata/soak.log
	@{ echo "$(HOURS) hours of $$(git rev-parse HEAD), begun $$(date -u +%FT%TZ)"; \
	  AGNES_BENCH_SOAK=$(HOURS)h go test -tags $(TAGS),bench -count=1 -timeout 72h -v -run TestBenchServingTenThousand ./e2e; } | tee -a e2e/testdata/serve.log

.PHONY: bench
bench: ## Measure against the bars that the documentation promises; `make deps-test` first
	go test -tags $(TAGS),bench -run TestBench -v -p 1 -count=1 -timeout 60m $(TESTFLAGS) ./...

##@ Generated files

.PHONY: surface
surface: build ## Write surface.json: every contract that others rely on, from the code
	@bin/agnes surface --with bin/agnesctl --with bin/release-bot >surface.json.tmp || { rm -f surface.json.tmp; exit 1; }
	@mv surface.json.tmp surface.json

.PHONY: docs
docs: build ## Write docs/cli.md, the reference of every command, from the programs
	@{ printf "# Commands\n\nWritten by \140make docs\140 from the programs themselves.\n\n"; bin/agnes docs; bin/agnesctl docs; bin/release-bot docs; } >docs/cli.md.tmp || { rm -f docs/cli.md.tmp; exit 1; }
	@mv docs/cli.md.tmp docs/cli.md

.PHONY: gen
gen: ## Write every generated file: go generate, surface.json, docs/cli.md
	go generate ./...
	@$(MAKE) --no-print-directory surface docs

.PHONY: tools
tools: $(TOOLS)/golangci-lint $(TOOLS)/actionlint ## Build the pinned tools into .tools/bin

# Each tool has a module of its own in tools/, so that none bends another's dependencies.
$(TOOLS)/%: tools/%/go.mod tools/%/go.sum
	@echo 'building $* (once)'
	@mkdir -p $(TOOLS)
	@GOBIN=$(TOOLS) go -C tools/$* install -trimpath tool
	@touch $@

# Its package is called cmd, and its version is set when it is linked.
COMPOSE := github.com/docker/compose/v2

$(TOOLS)/docker-compose: tools/docker-compose/go.mod tools/docker-compose/go.sum
	@echo 'building docker-compose (once; some minutes)'
	@mkdir -p $(TOOLS)
	@go -C tools/docker-compose build -trimpath -o $@ \
	  -ldflags "-s -w -X $(COMPOSE)/internal.Version=$$(go -C tools/docker-compose list -m -f '{{.Version}}' $(COMPOSE))" $(COMPOSE)/cmd
