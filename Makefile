# The one door to the build: what CI runs are these targets.
export CGO_ENABLED := 0
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
IMAGES ?= $(CURDIR)/images
FUZZTIME ?= 30s
ROUNDS ?= 3
PKG ?= ./...

# The race detector needs cgo; the program itself never does.
RACE = CGO_ENABLED=1 $(GO) test -race -timeout 30m

.PHONY: all
all: bin/layerfs ## build bin/layerfs, static

.PHONY: bin/layerfs
bin/layerfs:
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/layerfs ./cmd/layerfs

.PHONY: check
check: ## gofmt, vet, staticcheck, errcheck, deadcode
	@test -z "$$(gofmt -l cmd fuse union cache registry integration)" || { gofmt -l cmd fuse union cache registry integration; echo "run gofmt -w on these"; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags integration ./integration
	$(GO) tool staticcheck -checks all,-ST1000 ./...
	$(GO) tool staticcheck -checks all,-ST1000 -tags integration ./integration/...
	$(GO) tool errcheck -exclude .errcheck-exclude ./...
	@dead="$$($(GO) tool deadcode -test ./...)"; test -z "$$dead" || { echo "$$dead"; exit 1; }

.PHONY: test
test: all ## unit tests of every package, and the built program's own scripts
	$(GO) test $(TESTFLAGS) $(PKG)

.PHONY: race
race: ## the same under the race detector (needs a C compiler)
	$(RACE) $(TESTFLAGS) ./cache/... ./registry/... ./union/... ./fuse/...

.PHONY: demo
demo: all ## the whole loop on a sample image, with nothing else installed
	bin/layerfs demo

.PHONY: images
images: ## two real Debian images in images/ (root, mmdebstrap, buildah)
	integration/images/build.sh $(IMAGES)

.PHONY: integration
integration: all images ## the loop on the real images, held against podman and umoci (root)
	LAYERFS_IMAGES=$(IMAGES) $(GO) test -tags integration -count=1 -timeout 40m $(TESTFLAGS) ./integration/...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@set -e; $(GO) list ./... | while read -r p; do \
		$(GO) test -list '^Fuzz' $$p | sed -n '/^Fuzz/p' | while read -r f; do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p; done; done

.PHONY: bench
bench: ## Go benchmarks of every package
	$(GO) test -run '^$$' -bench . $(PKG)

.PHONY: bench-lazy
bench-lazy: all images ## lazy starts of every form against podman, near and far (root)
	integration/bench/lazy.sh $(IMAGES) $(ROUNDS)

.PHONY: bench-layer
bench-layer: all ## one large layer mounted from nothing against tar xzf, with a registry on loopback
	integration/bench/layer.sh $(ROUNDS)

.PHONY: bench-commit
bench-commit: all ## commit and push against buildah and umoci, with a registry on loopback (root)
	integration/bench/commit.sh $(ROUNDS)

.PHONY: bench-union
bench-union: all ## file operations in a mount against a plain directory, overlayfs and fuse-overlayfs (root)
	integration/bench/union.sh $(ROUNDS)

.PHONY: cover
cover: ## test coverage by function, and coverage.html
	$(GO) test -coverprofile coverage.out -coverpkg ./... $(PKG)
	$(GO) tool cover -func coverage.out | tail -1
	$(GO) tool cover -html coverage.out -o coverage.html

.PHONY: vuln
vuln: ## known vulnerabilities in what we link (asks the vulnerability database)
	$(GO) tool govulncheck ./...

.PHONY: clean
clean: ## remove what the build made (images/ stays)
	rm -rf bin coverage.out coverage.html

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14
