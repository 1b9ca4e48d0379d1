# flowaudit: build, try, test. `make help` lists the targets.

BIN      := bin
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)
GO       ?= go
TOOL     := $(GO) tool -modfile=tools/go.mod
# Today's ClickHouse as a library, for tests: 560 MB, kept outside of the tree.
CHDB     := 26.5.3
LIBCHDB  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flowaudit/chdb-$(CHDB)/libchdb.so
SOURCES  := $(shell find . -name '*.go' -not -path './tools/*') go.mod go.sum

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: need-build $(BIN)/flowaudit-agent $(BIN)/flowaudit-collector $(BIN)/flowaudit ## Build bin/flowaudit-agent, bin/flowaudit-collector and bin/flowaudit

$(BIN)/flowaudit-agent: $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/flowaudit-agent

$(BIN)/flowaudit: $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/flowaudit

# The embedded store is C++.
$(BIN)/flowaudit-collector: $(SOURCES)
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/flowaudit-collector

.PHONY: demo
demo: need-kernel build ## Show it on real kernel events: a policy, and who tried (root; KEEP=1 leaves it running)
	@$(GO) build -o $(BIN)/demo ./demo
	@$(BIN)/demo

.PHONY: demo-cluster
demo-cluster: need-kernel need-build need-cluster ## Show the same on a real Kubernetes in network namespaces (root; KEEP=1 leaves it running)
	@cd test/cluster && $(GO) build -o ../../$(BIN)/demo-cluster ./demo && ../../$(BIN)/demo-cluster

.PHONY: test
test: need-kernel need-build need-certificates need-clickhouse need-prometheus need-alertmanager need-cluster ## Run all tests, with the race detector, on the real kernel and a real Kubernetes (root)
	$(GO) vet ./...
	FLOWAUDIT_LIBCHDB=$(LIBCHDB) CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 15m ./...
	cd deploy && $(GO) vet ./... && $(GO) test -count=1 -timeout 30m ./...
	cd test/cluster && $(GO) vet ./...
	cd test/cluster && CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 15m -p 1 ./...

.PHONY: lint
lint: need-build ## Check style, generated code and go.mod
	$(TOOL) golangci-lint run ./...
	cd test/cluster && $(GO) tool -modfile=../../tools/go.mod golangci-lint run ./...
	$(GO) mod tidy -diff
	cd deploy && $(GO) tool -modfile=../tools/go.mod golangci-lint run ./...
	cd deploy && $(GO) mod tidy -diff
	cd test/cluster && $(GO) mod tidy -diff
	cd test/cluster/kubernetes && $(GO) mod tidy -diff
	@tools/generated.sh check

.PHONY: generate
generate: ## Make the generated code and pages anew
	@tools/generated.sh write
	$(GO) test -run 'TestMetrics' ./agent ./collector -update
	$(GO) test -run 'TestManualPage' ./cmd/flowaudit ./cmd/flowaudit-agent ./cmd/flowaudit-collector -update
	$(GO) test -run TestFiles ./queries/grafana -update
	cd deploy && $(GO) test -run 'TestManifests|TestFiles' . -update

.PHONY: images
images: need-build need-certificates ## Make the images as OCI archives in bin/images, each with its bill of materials
	cd deploy && $(GO) run ./release -version $(VERSION) images

.PHONY: krew
krew: ## Make the kubectl plugin's archives and its krew manifest in bin/krew
	cd deploy && $(GO) run ./release -version $(VERSION) -out ../bin/krew krew

.PHONY: bench
bench: need-kernel need-bench build ## Measure: one table of costs, losses and times (root)
	@$(GO) build -o $(BIN)/bench ./bench
	@$(BIN)/bench

.PHONY: soak
soak: need-kernel need-clickhouse need-cluster build ## Run the kernel, crash and cluster tests for long, with many connections (root)
	FLOWAUDIT_SOAK=10m CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 60m -v ./test/kernel
	FLOWAUDIT_SOAK=10m CGO_ENABLED=1 $(GO) test -count=1 -timeout 60m -v ./test/durability
	FLOWAUDIT_SOAK=10m CGO_ENABLED=1 $(GO) test -count=1 -timeout 60m -v ./test/crash
	FLOWAUDIT_SOAK=10m CGO_ENABLED=1 $(GO) test -count=1 -timeout 60m -v -run TestCluster ./collector/store/clickhouse
	$(GO) build -o $(BIN)/bench ./bench && $(BIN)/bench -only outage -outage 10m
	cd test/cluster && FLOWAUDIT_SOAK=10m $(GO) test -count=1 -timeout 60m -v .

.PHONY: fuzz
fuzz: need-build ## Fuzz every decoder for a minute each (FUZZTIME=10m for longer)
	@tools/fuzz.sh $(or $(FUZZTIME),60s)

.PHONY: vuln
vuln: need-build ## Look for known vulnerabilities in what is used (needs https://vuln.go.dev, or GOVULNDB)
	@tools/vuln.sh

.PHONY: clean
clean: ## Remove what build made
	rm -rf $(BIN)

# need PROGRAM PACKAGE: installs a Debian package, said aloud, where a program is missing.
define need
@command -v $(1) >/dev/null 2>&1 || { echo "installing the Debian package $(2), which has $(1)"; \
  if [ "$$(id -u)" != 0 ]; then echo "that needs root: sudo apt-get install $(2)" >&2; exit 1; fi; \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(2) >/dev/null; }

endef

.PHONY: need-build need-kernel need-bench need-clickhouse need-npm need-prometheus need-alertmanager need-certificates need-cluster
need-build:
	$(call need,gcc,gcc)
	$(call need,g++,g++)

need-kernel:
	$(call need,ip,iproute2)
	$(call need,nft,nftables)
	$(call need,iptables-restore,iptables)
	$(call need,ipset,ipset)

# Kubernetes is built once, which takes minutes.
need-cluster:
	@cd test/cluster && $(GO) run ./prepare

# The tests start servers of their own: the package's is not to run.
need-clickhouse:
	@command -v clickhouse-server >/dev/null 2>&1 || test -x /usr/sbin/clickhouse-server || { echo "installing the Debian package clickhouse-server, to test the store on it"; \
	  if [ "$$(id -u)" != 0 ]; then echo "that needs root: sudo apt-get install clickhouse-server" >&2; exit 1; fi; \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clickhouse-server >/dev/null; }

	@test -e /usr/share/java/zookeeper.jar || { echo "installing the Debian package zookeeper, to test the store on a cluster"; \
	  if [ "$$(id -u)" != 0 ]; then echo "that needs root: sudo apt-get install zookeeper" >&2; exit 1; fi; \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends zookeeper >/dev/null; }

	@test -e $(LIBCHDB) || { $(MAKE) --no-print-directory need-npm && echo "fetching libchdb $(CHDB) with npm, to test the store on today's ClickHouse" && \
	  mkdir -p $(dir $(LIBCHDB)) && cd $(dir $(LIBCHDB)) && npm pack --silent @chdb/lib-linux-x64-gnu@$(CHDB) >/dev/null && \
	  tar xzf *.tgz --strip-components=1 package/libchdb.so && rm *.tgz; }

# The collector's image has the authorities of the machine that it is made on.
need-certificates:
	@test -e /etc/ssl/certs/ca-certificates.crt || { echo "installing the Debian package ca-certificates, for the collector's image"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates >/dev/null; }

# The tests need promtool of it: the package's server is not to run.
need-prometheus:
	@command -v promtool >/dev/null 2>&1 || { echo "installing the Debian package prometheus, which has promtool"; \
	  if [ "$$(id -u)" != 0 ]; then echo "that needs root: sudo apt-get install prometheus" >&2; exit 1; fi; \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; }

# The tests start it themselves: the package's is not to run.
need-alertmanager:
	@command -v prometheus-alertmanager >/dev/null 2>&1 || { echo "installing the Debian package prometheus-alertmanager, to test alerts on it"; \
	  if [ "$$(id -u)" != 0 ]; then echo "that needs root: sudo apt-get install prometheus-alertmanager" >&2; exit 1; fi; \
	  apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus-alertmanager >/dev/null; }

need-npm:
	$(call need,npm,npm)

need-bench:
	$(call need,conntrack,conntrack)
	@test -e /usr/lib/$$(gcc -print-multiarch)/ulogd/ulogd_output_JSON.so || { echo "installing the Debian packages ulogd2 and ulogd2-json, to compare with"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ulogd2 ulogd2-json >/dev/null || echo "not to be had: the comparison is left out"; }
