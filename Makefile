# The one door to the build: CI runs the same targets. `make help` explains them.
export CGO_ENABLED := 0
GO ?= go

.PHONY: all
all: bin/layerfs ## build bin/layerfs (static)

.PHONY: bin/layerfs
bin/layerfs:
	$(GO) build -trimpath -ldflags '-s -w' -o bin/layerfs ./cmd/layerfs

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16
