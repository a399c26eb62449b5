# Everything a developer does, by name. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PROTOS := $(wildcard protos/extauthz/pb/*.proto)
# Tests kill and freeze real processes, and a crowded machine can outrun their patience: a failure is
# tried once more, and the summary counts it as "rerun". What fails twice has failed.
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder --reruns 1 -raR

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full tightness bench capacity fuzz check lock advisories format protos
.PHONY: envoy-yaml clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "extauthz needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@if $(BIN)/python tools/lock.py fits; then \
		echo "installing what requirements.lock names, by its hashes" && \
		grep -v '^atheris==' requirements.lock > .venv/locked.txt && \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r .venv/locked.txt && \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	else \
		echo "requirements.lock is for another Python or platform: installing unpinned" && \
		$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
		$(BIN)/python -m pip install --quiet --editable '.[demo]' --group dev; \
	fi
	@touch $@

install: $(INSTALLED) ## make .venv with everything in it

demo: $(INSTALLED) ## watch a runaway agent being stopped at its limit
	@$(BIN)/extauthz demo

test: $(INSTALLED) ## all tests, with real Envoy and Valkey (JOBS=3)
	$(PYTEST) -m 'not full'

test-full: $(INSTALLED) ## the same at their longer sizes too
	$(PYTEST)

tightness: $(INSTALLED) ## how far estimates are above costs
	@$(BIN)/python tests/tightness.py

bench: $(INSTALLED) ## measure how fast it is (ROWS="checks latency")
	@PYTHONPATH=tests $(BIN)/python -m bench $(ROWS)

capacity: $(INSTALLED) ## what one store carries, and shared by many (SIDECARS=1000 CALLS=20 SECONDS=6)
	@PYTHONPATH=tests $(BIN)/python -m bench.capacity

fuzz: $(INSTALLED) ## fuzz each target, new inputs from the kept corpus on (SECONDS=60)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || { \
		grep '^atheris==' requirements.lock > .venv/fuzz.txt && \
		$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r .venv/fuzz.txt; }
	@$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60)

check: $(INSTALLED) ## lint, types, layers, the lock, known weaknesses, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/lock.py check
	$(BIN)/python tools/audit.py check
	@$(MAKE) --no-print-directory --silent generated-are-fresh

lock: $(INSTALLED) ## resolve the dependencies anew into requirements.lock
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python tools/lock.py write

advisories: $(INSTALLED) ## take known weaknesses of the locked packages FROM=a checkout of pypa/advisory-database
	@$(BIN)/python tools/audit.py read $(FROM)
	@$(BIN)/python tools/audit.py check

format: $(INSTALLED) ## format, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED) ## generate extauthz/pb from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. $(PROTOS)

envoy-yaml: $(INSTALLED) ## render envoy/envoy.yaml from the example config
	$(BIN)/extauthz config envoy -c deploy/extauthz.yaml > envoy/envoy.yaml

.PHONY: generated-are-fresh
generated-are-fresh:
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && mkdir -p "$$fresh" && \
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out="$$fresh" --pyi_out="$$fresh" $(PROTOS) && \
	for file in "$$fresh"/extauthz/pb/*; do \
		cmp -s "$$file" "extauthz/pb/$$(basename "$$file")" || \
			{ echo "extauthz/pb is stale: make protos"; exit 1; }; \
	done && \
	$(BIN)/extauthz config envoy -c deploy/extauthz.yaml > "$$fresh/envoy.yaml" && \
	cmp -s "$$fresh/envoy.yaml" envoy/envoy.yaml || \
		{ echo "envoy/envoy.yaml is stale: make envoy-yaml"; exit 1; }

clean: ## remove .venv and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
