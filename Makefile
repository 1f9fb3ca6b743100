# dhow: see `make help`. Everything built goes to bin/ and build/out/.

SHELL   := /bin/bash
VERSION ?= 0.1.0-dev
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X dhow/internal/version.Version=$(VERSION) -X dhow/internal/version.Commit=$(COMMIT)
GO      := CGO_ENABLED=0 go
ARCH    := $(shell go env GOARCH)
IMAGE   := build/out/image/$(ARCH)
FUZZTIME ?= 20s

.PHONY: help deps build vmimage vmimage-all run test test-unit test-kernel test-vm fuzz lint bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install the system packages that building, running and testing need (Debian, Ubuntu)
	@build/deps.sh

build: ## build the host programs into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/dhow ./cmd/dhowd

vmimage: ## build the VM image (kernel, initramfs, root) for this computer's architecture
	$(GO) run ./vmimage/mkimage -arch $(ARCH) -out $(IMAGE) -version '$(VERSION)'

vmimage-all: ## the same for both architectures
	$(GO) run ./vmimage/mkimage -arch amd64 -out build/out/image/amd64 -version '$(VERSION)'
	$(GO) run ./vmimage/mkimage -arch arm64 -out build/out/image/arm64 -version '$(VERSION)'

run: deps build vmimage ## start the machine and run the built-in container in it
	@build/demo.sh

test: deps lint test-unit test-kernel test-vm ## all of the tests

test-unit: ## tests that need no root and no VM (as root, those of the kernel level too)
	env -u CI_REQUIRE_VM go test ./...

test-kernel: deps ## tests on this kernel, as root, in namespaces of their own
	env -u CI_REQUIRE_VM CI_REQUIRE_KERNEL=1 go test ./guest/...

test-vm: deps build vmimage-all ## tests that boot the VM image
	build/test-vm.sh

lint: ## gofmt, vet for every system, staticcheck, type-check of the macOS code
	build/lint.sh

fuzz: ## every fuzz target for FUZZTIME (20s)
	build/fuzz.sh $(FUZZTIME)

bench: deps build vmimage ## measure beside the bare kernel, and beside PEER=tcp://… if given
	go run ./build/bench $(if $(PEER),-peer $(PEER)) $(BENCHFLAGS)

clean: ## remove what was built (the machine's data in ~/.dhow stays)
	rm -rf bin build/out .cache
