# `make` lists the targets. The first that needs it makes .venv; nothing else has to be installed
# but Python 3.11 or newer (with its headers and venv module) and a C++ compiler.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run demo test lint format protos check-protos lock clean bench-echo bench-tenancy bench-cranfield bench-search \
  bench-pgvector bench-spaces bench-login bench-append bench-context campaign-isolation campaign-chat campaign-model \
  campaign-index campaign-freshness

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

run: $(READY) ## Serve the hub. HUB_DATABASE_URL: your Postgres; unset: one of its own under .hub.
	@if [ -n "$$HUB_DATABASE_URL" ]; then $(BIN)/hub migrate || exit; fi; exec $(BIN)/hub serve

demo: $(READY) ## Show the hub at work on this repository's texts, or on CORPUS=dir.
	@$(BIN)/python -m scripts.demo $(if $(CORPUS),--corpus "$(CORPUS)")

# A file's tests stay together, since they share what is dear to make. Three at a time, as many wait for
# a process or a hash: on two cores .9 of the time of two. ARGS="-n 0": one after another.
test: $(READY) ## Run the tests. ARGS="-k name" picks some.
	@$(BIN)/pytest -n 3 --dist loadfile $(ARGS)

# $(call quietly,COMMAND): what the command says only matters when it fails.
quietly = @out=$$($(1) 2>&1) || { printf '%s\n' "$$out"; exit 1; }

lint: $(READY) check-protos ## Check style, types, layers and protos. Says nothing when all is well.
	$(call quietly,$(BIN)/ruff check --quiet)
	$(call quietly,$(BIN)/ruff format --check)
	$(call quietly,$(BIN)/mypy)
	$(call quietly,$(BIN)/lint-imports --no-logo)
	$(call quietly,$(BIN)/buf lint protos)
	$(call quietly,$(BIN)/buf format --diff --exit-code protos)

format: $(READY) ## Sort imports and format the code.
	@$(BIN)/ruff check --quiet --fix --select I
	@$(BIN)/ruff format --quiet
	@$(BIN)/buf format --write protos

protos: $(READY) ## Write hub_client/v1 from the protos.
	@$(BIN)/python scripts/gen_protos.py

check-protos: $(READY) ## Fail if hub_client/v1 is not what the protos say.
	@$(BIN)/python scripts/gen_protos.py --check

# --fork-strategy fewest: one version of each package for every Python, not the newest for each.
lock: $(READY) ## Write requirements.lock from pyproject.toml (UPGRADE=1: newest versions).
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --fork-strategy fewest --generate-hashes --no-annotate --quiet $(if $(UPGRADE),--upgrade) \
	  --custom-compile-command "make lock" --output-file requirements.lock

bench-echo: $(READY) ## Measure an empty call and an append against a bare gRPC echo.
	@$(BIN)/python -m scripts.bench.echo

bench-append: $(READY) ## Measure appends against a bare echo and the statement alone. SESSIONS=n: memory.
	@$(BIN)/python -m scripts.bench.append $(if $(SESSIONS),--sessions $(SESSIONS))

bench-tenancy: $(READY) ## Measure what row security and the tenant cost a statement.
	@$(BIN)/python -m scripts.bench.tenancy

bench-cranfield: $(READY) ## Measure search on Cranfield: nDCG@10, rates, latencies.
	@$(BIN)/python -m scripts.bench.cranfield

bench-search: $(READY) ## Measure views and Search beside numpy, hnswlib, an echo. SIZES="1000 10000": minutes.
	@$(BIN)/python -m scripts.bench.search $(if $(SIZES),--sizes $(SIZES))

bench-spaces: $(READY) ## Measure the memory of 2,000 spaces under a budget of 64 MB; minutes.
	@$(BIN)/python -m scripts.bench.spaces

bench-pgvector: $(READY) ## Measure vectors searched by pgvector beside views; minutes (SIZES="1000 10000").
	@$(BIN)/python -m scripts.bench.pgvector $(if $(SIZES),--sizes $(SIZES))

bench-context: $(READY) ## Measure BuildContext and Recall for a user of whom much is known; minutes.
	@$(BIN)/python -m scripts.bench.context

bench-login: $(READY) ## Measure what time tells of a login, and what a flood of logins costs others.
	@$(BIN)/python -m scripts.bench.login

campaign-isolation: $(READY) ## Make 10,000 calls of two tenants at random; minutes. SEED=n repeats one.
	@CAMPAIGN_SEED=$(SEED) $(BIN)/pytest -s -m slow tests/integration/test_canaries.py

campaign-chat: $(READY) ## Append 100,000 times amid 52 kills -9 and cut connections; minutes. SEED=n repeats one.
	@CAMPAIGN_SEED=$(SEED) $(BIN)/pytest -s -m "" -k "control or campaign" tests/e2e/test_histories.py

campaign-model: $(READY) ## Compare the hub with models of chat and memory in 70,000 random calls; minutes. SEED=n repeats one.
	@CAMPAIGN_SEED=$(SEED) $(BIN)/pytest -s -m slow tests/integration/test_chat_model.py tests/integration/test_memory_model.py

campaign-index: $(READY) ## Hold each engine of search to its promises for 1,200 random steps; minutes. SEED=n repeats one.
	@CAMPAIGN_SEED=$(SEED) $(BIN)/pytest -s -m slow tests/integration/test_index_conformance.py

campaign-freshness: $(READY) ## Write in one process, search in another, 10,000 times with each engine; minutes. SEED=n repeats one.
	@CAMPAIGN_SEED=$(SEED) $(BIN)/pytest -s -m slow tests/e2e/test_freshness.py

clean: ## Remove what make made. The data in .hub stays.
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the virtual environment -------------------------------------------------------------------

# Each sets a shell variable or ends with one plain line. Old Pythons must be able to read these.
is_recent = import sys; sys.exit(sys.version_info < (3, 11))
version = import sys; print("%d.%d.%d" % sys.version_info[:3])
has_headers = import os, sys, sysconfig; \
  sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))

define find_python
  python=; found=; \
  for candidate in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
    has=$$("$$candidate" -c '$(version)' 2>/dev/null) || continue; \
    if "$$candidate" -c '$(is_recent)'; then python=$$candidate; break; fi; \
    found="$${found:+$$found, }$$candidate $$has"; \
  done; \
  if [ -z "$$python" ]; then \
    echo "The hub needs Python 3.11 or newer, found $${found:-none}: name one with PYTHON=/path/to/python3.11" >&2; \
    exit 1; \
  fi
endef

define find_compiler
  compiler=; \
  for candidate in $$CXX c++ g++ clang++; do \
    if command -v "$$candidate" >/dev/null; then compiler=$$candidate; break; fi; \
  done; \
  if [ -z "$$compiler" ]; then \
    echo "The hub needs a C++ compiler (hnswlib is compiled): install g++ or clang++, or name one with CXX=" >&2; \
    exit 1; \
  fi
endef

define check_python
  if ! "$$python" -c '$(has_headers)'; then \
    echo "The hub needs the headers of Python $$has (hnswlib is compiled): install the package python3-dev" >&2; exit 1; \
  fi; \
  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
    echo "The hub needs the venv module of Python $$has: install the package python3-venv" >&2; exit 1; \
  fi
endef

PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --no-build-isolation

# hnswlib has no wheel. Its build tools come first, out of the same lock, and it is built with those
# (--no-build-isolation): pip would fetch unpinned ones. It is compiled for this machine's processor;
# where .venv travels to others, set HNSWLIB_NO_NATIVE=1.
$(READY): requirements.lock pyproject.toml
	@$(find_python); $(find_compiler); $(check_python); \
	[ -x $(BIN)/python ] || echo "Making .venv with Python $$has (two minutes, once)"; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || exit; \
	export CXX="$$compiler"; \
	awk '/^(numpy|pybind11|setuptools)==/,!/\\$$/' requirements.lock > $(VENV)/build.txt; \
	$(PIP) --require-hashes -r $(VENV)/build.txt && \
	$(PIP) --require-hashes -r requirements.lock && \
	$(PIP) --no-deps -e . && \
	touch $@
