# `make help` lists the targets; each builds .venv first if it is missing.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "vggkit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V): make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
	  set -ex; uv venv --quiet --clear --python $(PYTHON) .venv; \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock; \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  set -ex; $(PYTHON) -m venv --clear .venv; \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	  $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

.PHONY: setup demo docs docs-serve test test-slow check bench lock lock-serve release-files help

setup: $(READY)  ## build .venv with all development dependencies, pinned and hashed
	@echo "ready: . $(BIN)/activate"

demo: $(READY)  ## train, evaluate and predict on handwritten digits
	@$(BIN)/vggkit demo $(DEMO)

test: $(READY)  ## the default tests: no network, no GPU, about five minutes on two cores
	$(BIN)/python -m pytest

test-slow: $(READY)  ## every test, including the slow ones
	$(BIN)/python -m pytest -m "slow or not slow"

# The theme's notice about its successor is no warning of this site; see docs/decisions/site.md.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(READY)  ## build the documentation into site/, without a network
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-serve: export NO_MKDOCS_2_WARNING = 1
docs-serve: $(READY)  ## show the documentation at http://127.0.0.1:8001, built again when a page changes
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## run all benchmarks; each script writes its table beside itself
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11
lock: $(READY)  ## pin the newest versions: one lock for every platform, hashes and no addresses
	$(LOCK) --upgrade --all-extras --group dev pyproject.toml -o requirements.lock
	@$(MAKE) --no-print-directory lock-serve

lock-serve: $(READY)  ## pin what `vggkit serve` needs, without torch, to the versions of requirements.lock
	$(BIN)/python deploy/list_requirements.py | $(LOCK) --constraints requirements.lock - -o requirements-serve.lock

release-files: $(READY)  ## dist: sdist, wheel, a software bill of materials (CycloneDX), and their SHA-256
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --mc-type library \
	  --output-reproducible --of JSON -o dist/vggkit.cdx.json
	cd dist && ../$(BIN)/python -c 'import hashlib, pathlib; pathlib.Path("SHA256SUMS").write_text("".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(pathlib.Path().iterdir()) if p.name != "SHA256SUMS"))'

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
