# Jobwire's commands; `make help` lists them. `make` alone does the same.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

# Scripts and tests find buf and other tools by name.
export PATH := $(BIN):$(PATH)

LOCK := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" --quiet

.PHONY: help install demo test check smoke faults lint format proto breaking bench plots lock upgrade clean

help: ## Show what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the virtual environment from the lock file

$(STAMP): requirements/dev.txt pyproject.toml tools/create_venv.sh tools/install_packages.sh
	@tools/create_venv.sh $(VENV)
	@tools/install_packages.sh $(VENV)
	@touch $(STAMP)

demo: install ## Start a broker and run real jobs through it (DIR=a folder of yours)
	@$(BIN)/python examples/files/demo.py $(if $(DIR),"$(DIR)")

# Most tests wait for something most of the time: for two cores, six at once are about right. Those that
# fill the machine, or count on it, come after the others and one by one.
JOBS ?= 6
test: install ## Run all tests but those of `make smoke` (ARGS="-k words" for some of them, JOBS=0 for one at a time, SOAK=20000 streams)
	@$(if $(SOAK),JOBWIRE_TEST_SOAK=$(SOAK)) $(BIN)/python tools/run_tests.py $(JOBS) $(ARGS)

# These hardly wait.
check: JOBS := 3
check: lint ## Lint, and run the tests that start no processes
	@$(BIN)/python tools/run_tests.py --quick $(JOBS) $(ARGS)

smoke: install ## Run each benchmark very small, and faults for half a minute: do these tools work?
	@$(BIN)/python tools/run_tests.py --smoke 3 $(ARGS)

faults: install ## Kill, stop and cut what runs, and check what came of it (MINUTES=5 SEED= CONFIG=all)
	@$(BIN)/python -m tests.faults --minutes $(or $(MINUTES),5) --config $(or $(CONFIG),all) \
		$(if $(SEED),--seed $(SEED)) $(ARGS)

fuzz: install ## Send the server all kinds of inputs, and check what came of them (MINUTES=5 SEED=)
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED)) $(ARGS)

lint: install ## Check style, types, layers, the contract and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy server client tools
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/unasync.py --check

format: install ## Put code and protos into their form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

proto: install ## Generate the Python stubs from protos/, and the sync client from the async one
	$(BIN)/python tools/generate_protos.py
	$(BIN)/python tools/unasync.py

breaking: install ## Compare the contract with the one of main (AGAINST=another commit)
	@tools/check_breaking.sh $(or $(AGAINST),main)

bench: install ## Run a benchmark (NAME=its name, ARGS=its options)
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

plots: install ## Draw pictures of results for docs/ (RESULTS="files that bench wrote with ARGS=--json")
	@$(BIN)/python -m benchmarks.plots $(RESULTS)

lock: install ## Bring the lock files up to what pyproject.toml asks for
	$(LOCK) --extra embedded --group dev --output-file requirements/dev.txt
	$(LOCK) --extra embedded --constraints requirements/dev.txt --output-file requirements/server.txt

upgrade: LOCK += --upgrade
upgrade: lock ## Lock the newest versions that pyproject.toml allows

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
