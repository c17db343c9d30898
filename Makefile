# Every target sets up what it needs by itself and is quick the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo dev test check format explore bench torture restarts stress soak clean

PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
BIN := .venv/bin
# Each package that comes is a line: the first set-up takes a minute or two, and should not look as if it hung.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
SHORT := awk '/^Collecting / {print "  " $$2; fflush()} /^Installing collected/ {print "  putting them in place"; fflush()}'
FILE ?=
SEED ?=
SECONDS ?=
DATABASE ?=
SERVERS ?=
RUNS ?=

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo FILE=people.csv   runs the demo on a file of your own"

demo: .venv/.runtime ## Watch 10,000 rows being processed as 10,000 runs, in a temporary folder
	@$(BIN)/milepost demo $(if $(FILE),"$(FILE)")

dev: .venv/.runtime ## Run server, dashboard and workers on the examples
	@$(BIN)/milepost dev examples

# Two processes for each core, because many tests wait for other processes, and each takes whole files: their tests share servers and
# browsers. Long files begin first (tests/conftest.py). Where the environment keeps Python from storing what it has
# compiled, as images of containers do, each of the thousands of processes would compile everything anew.
test: check .venv/.browser .venv/.pooler .venv/javascript/.installed ## Everything that the continuous integration runs: the checks and all tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(2 * (os.cpu_count() or 1))') --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 0

check: .venv/.development ## Lint, formatting, types, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pyright -p benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

explore: .venv/.development ## Search the properties with new examples, and 10,000 new seeds of the simulation
	MILEPOST_TEST_PROFILE=explore $(BIN)/python -m pytest -n auto --dist loadfile -m hypothesis
	cd tests && ../$(BIN)/python -m simulation --seeds "$$(date +%s0000):+10000"

format: .venv/.development ## Put the code into its format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.development ## Measure cost and speed; the numbers are explained in benchmarks/README.md
	$(BIN)/python benchmarks/run.py

torture: .venv/.development ## Kill workers and servers and cut connections under load; nothing may be lost (SECONDS=60 SEED= DATABASE=postgres SERVERS=3)
	$(BIN)/python tests/torture --seconds $(or $(SECONDS),60) $(if $(SEED),--seed $(SEED)) \
		--database $(or $(DATABASE),sqlite) --servers $(or $(SERVERS),1)

restarts: .venv/.development ## Restart three servers one after the other 20 times, and PostgreSQL 10 times, under load; nothing may be lost or charged
	$(BIN)/python tests/torture --database postgres --servers 3 --server-restarts 20 --database-restarts 10 $(if $(SEED),--seed $(SEED))

stress: .venv/.development ## 100,000 mixed runs under fire: retries, cancels, timeouts, waits, trees; each ends as it has to (RUNS=100000 SEED= DATABASE=postgres SERVERS=3)
	$(BIN)/python tests/torture/stress.py --runs $(or $(RUNS),100000) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) \
		--database $(or $(DATABASE),sqlite) --servers $(or $(SERVERS),1)

soak: .venv/.development ## 8 executors x 50 updates/s: memory, latency, locks (SECONDS=600 DATABASE=postgres)
	$(BIN)/python benchmarks/soak.py --seconds $(or $(SECONDS),600) --database $(or $(DATABASE),sqlite)

clean: ## Remove what was set up and built
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/.made:
	@if [ -z "$(PYTHON)" ]; then echo "Milepost needs Python 3.11 or newer, and there is none on the PATH." >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing $$package, which Debian keeps apart from Python ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$package" >/dev/null; \
		else \
			echo "Python cannot make virtual environments here. Install the package $$package (sudo apt install $$package) and try again." >&2; \
			exit 1; \
		fi; \
	fi
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: .venv/.made pyproject.toml
	@echo "Installing what Milepost needs ..."
	@$(PIP) --editable . | $(SHORT)
	@touch $@

.venv/.development: .venv/.made pyproject.toml
	@echo "Installing what Milepost and its tests need ..."
	@$(PIP) --editable '.[dev]' | $(SHORT)
	@touch .venv/.runtime $@

# The dashboard's tests drive Debian's own Chromium; downloads of other builds are not needed.
.venv/.browser: .venv/.development
	@if ! command -v chromium >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Chromium for the dashboard's tests ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
		else \
			echo "The dashboard's tests need Chromium: install the packages chromium and fonts-dejavu-core (sudo apt install chromium fonts-dejavu-core)." >&2; \
			exit 1; \
		fi; \
	fi
	@touch $@

# A pooler in front of PostgreSQL, which tests try our servers behind. Without it they are skipped.
.venv/.pooler: | .venv/.made
	@if ! [ -x /usr/sbin/pgbouncer ] && ! command -v pgbouncer >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing PgBouncer for the tests ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends pgbouncer >/dev/null; \
		else \
			echo "There is no PgBouncer here: the tests behind a pooler are skipped (sudo apt install pgbouncer)."; \
		fi; \
	fi
	@touch $@

# The official JavaScript client, as it is published, which tests try against our server. Without npm they are skipped.
.venv/javascript/.installed: tests/javascript/package.json tests/javascript/package-lock.json tests/javascript/.npmrc | .venv/.made
	@if ! command -v npm >/dev/null; then \
		echo "There is no npm here: the tests of the official JavaScript client are skipped."; \
	else \
		echo "Installing the official JavaScript client for the tests ..."; \
		mkdir -p $(@D); cp $^ $(@D)/; npm ci --silent --prefix $(@D); touch $@; \
	fi
