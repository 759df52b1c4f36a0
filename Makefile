# cryo. `make` says what there is. What a target needs of the machine, hack/deps installs or names.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash

# Where rustup puts cargo; sudo does not.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

# The whole workspace is built at once everywhere: parts of it alone would need other features of
# the same dependencies, and so a second build of them.

.PHONY: help
help: ## say what there is
	@echo "cryo: freeze a container, wake it elsewhere. 'make TARGET':"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

.PHONY: deps
deps: ## install what is needed (root, apt-get), or say what is missing
	@hack/deps

.PHONY: build
build: deps ## debug binaries: target/debug/{containerd-shim-cryo-v2,cryoctl}
	@$(CARGO) build --workspace --locked

.PHONY: release
release: deps ## release binaries: target/release
	@CRYO_REVISION=$$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown) \
		$(CARGO) build --release --locked -p containerd-shim-cryo-v2 -p cryoctl

.PHONY: demo
demo: build ## a container freezes on one node and goes on counting on another (root)
	@hack/demo

.PHONY: test
test: build ## all tests; those in the lab need root, or say that they were skipped
	@hack/test

.PHONY: test-vm
test-vm: build ## end to end tests on Debian's kernel and cgroup v2, emulated by qemu (root; VM="FILTER...")
	@hack/vm test $(VM)

.PHONY: soak
soak: build ## 200 pods' lives in the lab, then: did anything grow? (root; SOAK="--pods N --seed S")
	@target/debug/cryo-soak $(SOAK)

.PHONY: fuzz-smoke
fuzz-smoke: ## 30 s of fuzzing each target (FUZZ_SECONDS)
	@hack/fuzz-smoke

.PHONY: lint
lint: deps ## format, clippy, the rules of the house
	@hack/lint

.PHONY: docs
docs: build ## API documentation, manual pages, links
	@hack/docs

.PHONY: bench
bench: build release ## cryo beside the Go shim with runc, in the lab (root)
	@CRYO_BIN_DIR=$(CURDIR)/target/release target/debug/cryo-bench

.PHONY: bench-cryoctl
bench-cryoctl: build release ## cryoctl beside checkpointctl, on 1 GiB of memory, in the lab (root)
	@CRYO_BIN_DIR=$(CURDIR)/target/release target/debug/cryoctl-bench

.PHONY: conformance
conformance: build ## critest's specs with cryo and with the Go shim: docs/conformance.md (root, Go)
	@target/debug/cryo-conformance

.PHONY: compatibility
compatibility: build ## what survives a checkpoint, with cryo and with the Go shim: docs/compatibility.md (root, Go)
	@target/debug/cryo-compat

.PHONY: lab
lab: build ## start the lab's node-a: a containerd with this checkout's shim (root)
	@hack/lab up node-a
	@echo "A shell in it: hack/lab shell node-a. To end it: hack/lab down. More: hack/lab --help"

.PHONY: install
install: ## install release binaries and manual pages (PREFIX, DESTDIR)
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" hack/install

.PHONY: clean
clean: ## remove what was built; the lab's root stays ('rm -rf .lab' after 'hack/lab down' removes it)
	@$(CARGO) clean
