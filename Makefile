# make demo | base-bundle | test | test-long | test-arm | test-boot | wheel | check | bench | fuzz; each brings what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SECONDS ?= 60
export BOTWATCH_DATA ?= $(abspath ../shared/data)
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo real base-bundle test test-long test-arm test-boot wheel check bench fuzz clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/botwatch demo

# The same on published captures of real devices and attacks ($(BOTWATCH_DATA)): the table in docs/measured.md.
real: $(READY)
	$(BIN)/botwatch demo --captures configs/captures --root $(BOTWATCH_DATA)/pcap --out real

# The bundle that comes with botwatch, in edge_agent/builtin: from generated homes alone, the same bytes on the same kind of
# processor. A test says when it must be made again, after a change of what it depends on.
base-bundle: $(READY)
	$(BIN)/botwatch trainer base

test: $(READY)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)
	$(BIN)/python -m pytest -q

# Ten minutes of fuzzing, a million frames at least, and floods at their full rates where `make test` sends a few packets a second.
test-long: $(READY)
	$(BIN)/python -m tests.fuzz --seconds 600 --frames 1000000
	BOTWATCH_LONG=1 $(BIN)/python -m pytest -q

# The package built for arm64, on Debian 12 and 13 under qemu; fetches some 100 MB of Debian once, into build/arm.
test-arm: $(READY)
	PYTHON=$(PYTHON) sh tests/system.sh arm
	$(BIN)/python -m pytest -q -s tests/arm/on_arm.py

# Debian 12 and 13, booted by systemd and installed by the steps of docs/gateway.md, report a scan to a collector; an image
# for arm64, a capture. Needs root; fetches some 300 MB of Debian and wheels once, into build.
test-boot: $(READY)
	PYTHON=$(PYTHON) sh tests/system.sh boot
	$(BIN)/python -m pytest -q -s tests/boot/on_boot.py tests/boot/on_image.py

# What a gateway needs, in dist: wheels for this machine and arm64, and the installer (docs/gateway.md). Fetches some 100 MB
# of Debian once, into build/arm, to build for arm64.
wheel: $(READY)
	PYTHON=$(PYTHON) sh tests/system.sh arm
	$(BIN)/python -m tools.wheels

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_dependencies.py
	$(BIN)/python -m tests.sizes

bench: $(READY)
	$(BIN)/python -m tests.bench.bench_kernel
	-$(BIN)/python -m tests.bench.bench_footprint
	-$(BIN)/python -m tests.bench.bench_live
	-$(BIN)/python -m tests.bench.bench_arm
	-$(BIN)/python -m tests.bench.bench_soak
	$(BIN)/python -m tests.bench.bench_trainer
	$(BIN)/python -m tests.bench.bench_whole
	-$(BIN)/python -m tests.bench.bench_agent

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# The kernel is compiled here, so a change of it makes everything ready anew.
$(READY): pyproject.toml $(wildcard edge_agent/kernel/*.[ch]) tests/system.sh
	PYTHON=$(PYTHON) sh tests/system.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo real *.egg-info edge_agent/*.so
