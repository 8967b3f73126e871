# Builds, tests and shows Longship. Everything needed is installed by `make setup`,
# which the other targets imply; slow results are kept in ~/.cache/longship.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(HOME)/.cargo/bin:$(PATH)
export CARGO_TARGET_DIR := $(CURDIR)/target
export CARGO_TERM_PROGRESS_WHEN := never

# Memory of the virtual host, where there is no usable KVM; seconds it may take.
testbed := --memory 4096 --timeout 1800
on_kvm := hwtests/setup/on-kvm.sh
triple := x86_64-unknown-linux-gnu
# What runs once a pod is static and at a fixed place: nothing is relocated or linked
# when it starts, and nearly all of its memory is shared by all pods.
static := RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    cargo build --profile lean --target $(triple)

.NOTPARALLEL:
.PHONY: help setup build guest demo test lint unit e2e bench bench-control

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup: ## install what is missing on this machine (apt)
	@hwtests/setup/packages.sh

build: setup ## all programs, into target/release
	cargo build --release --workspace --exclude longship-vmm --exclude longship-init --exclude longship-e2e
	$(static) -p longship-vmm
	ln -f target/$(triple)/lean/longship-vmm target/release/longship-vmm

guest: setup ## the guest's kernel and initramfs, into target/guest
	guest/init/build.sh

demo: build guest ## a pod from a real image, through the whole path
	@hwtests/demo/make-image.sh target/demo/image
	@$(on_kvm) $(testbed) -- hwtests/demo/demo.sh

test: lint unit e2e ## all checks and tests

lint: setup ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

unit: setup ## the tests beside the code
	cargo test --workspace --exclude longship-e2e

# Those of templates count what the host has lost of its memory, and go first: what a
# kernel keeps of machines that have ended it need not take again.
# Tests that need a KVM: what crosses processes, the agent, the VMM and init by themselves.
kvm_tests := --test pods --test clones --test refusals --test recovery --test real_vmm --test templates --test kvm_guest --test kvm_template --test kvm_linux --test kvm_clone

e2e: build guest ## the tests that need a KVM and cross processes
	@tests=$$(cargo test -p longship-e2e -p longship-agent -p longship-vmm -p longship-init $(kvm_tests) \
	        --no-run --message-format=json-render-diagnostics | \
	    sed -n 's/.*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*/\1/p' | \
	    awk '/\/templates-/ { print; next } { rest = rest "\n" $$0 } END { print rest }'); \
	export LONGSHIP_VMM=$(CURDIR)/target/release/longship-vmm; \
	export LONGSHIP_KERNEL=$(CURDIR)/target/guest/vmlinux; \
	export LONGSHIP_INITRAMFS=$(CURDIR)/target/guest/initramfs.cpio; \
	$(on_kvm) $(testbed) -- bash -c 'failed=0; for t; do "$$t" --test-threads=1 || failed=1; done; exit $$failed' e2e $$tests

bench: build guest ## what starts, sandboxes, pods and the control plane cost, beside what was promised
	@hwtests/demo/make-image.sh target/demo/image
	cargo bench -p longship-scheduler
	@hwtests/bench/bench.sh

bench-control: setup ## of these, what needs no KVM: the scheduler and the control plane
	cargo build --release -p longship-control -p longship-sim -p longship-bench
	cargo bench -p longship-scheduler
	@hwtests/bench/control-plane.sh target/bench
	@target/release/longship-bench report target/bench/control-*.json --html target/bench/control.html
