# Works with a POSIX shell and any make since GNU make 3.81; needs Python 3.11 or newer.
PORT ?= 8080
HOST ?= 127.0.0.1
DATA ?= ./data
MODEL ?= models/reference
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=

# The README test starts its server with this very line.
SERVE = "$(BIN)/npt" serve --model "$(MODEL)" --host "$(HOST)" --port "$(PORT)" --data "$(DATA)"

# Compiled when the project is installed.
KERNELS = hatch_build.py npt_core/native/kernels.c
# Stamps: what is installed. requirements-dev.lock contains all of requirements.lock.
RUNTIME = $(VENV)/.npt-runtime
DEV = $(VENV)/.npt-dev

.PHONY: help serve serve-command test tools stress fuzz torture rehearsal lint types imports format openapi lock clean

help:
	@echo 'make serve    serve the reference model (PORT=$(PORT) HOST=$(HOST) DATA=$(DATA) MODEL=$(MODEL))'
	@echo 'make test     lint, types, imports, tests (ARGS="-k name" reaches pytest)'
	@echo 'make tools    kubectl, checkov and hadolint into .tools, for the tests of k8s/ and docker/'
	@echo 'make stress   the long forms of the tests of the engine (half an hour)'
	@echo 'make fuzz     schemathesis, then 100,000 malformed requests (an hour)'
	@echo 'make torture  kills, failing calls, chaos, power cuts, corruption (hours; root, strace, xfsprogs, PostgreSQL)'
	@echo 'make rehearsal  a rolling upgrade under load, ten minutes (PostgreSQL)'
	@echo 'make lint     ruff: rules and format'
	@echo 'make format   let ruff repair what it can'
	@echo 'make types    mypy, strict'
	@echo 'make imports  the layers of docs/architecture.md'
	@echo 'make openapi  write openapi.yaml from the application'
	@echo 'make lock     install what pyproject.toml says and write requirements*.lock'
	@echo 'make clean    remove caches (not $(VENV), not $(DATA))'

serve: $(RUNTIME)
	@exec $(SERVE)

serve-command:
	@echo '$(SERVE)'

# A file of tests stays in one process, the longest files (tests/conftest.py) come first; one thread each,
# so that processes do not fight over the cores.
test: lint types imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder $(ARGS)

tools: $(DEV)
	sh tools/programs.sh '$(BIN)/python' .tools

stress: $(DEV)
	$(BIN)/python -m pytest --stress --timeout=1800 tests/npt_core/engine tests/reference/test_oracles.py \
	    tests/service/test_pressure.py $(ARGS)

fuzz: $(DEV)
	$(BIN)/python -m torture conform --examples 300
	$(BIN)/python -m torture fuzz --requests 100000

torture: $(DEV)
	$(BIN)/python -m torture kill --rounds 1000
	$(BIN)/python -m torture points
	$(BIN)/python -m torture fail
	$(BIN)/python -m torture fail --change fact --mutant hasty_replay
	$(BIN)/python -m torture full
	$(BIN)/python -m torture readonly --rounds 50
	$(BIN)/python -m torture corrupt --rounds 200
	$(BIN)/python -m torture store --facts 500
	$(BIN)/python -m torture chaos --seconds 600
	$(BIN)/python -m torture load --seconds 600 --clients 64
	$(BIN)/python -m torture chaos --seconds 30 --mutant lost_update
	$(BIN)/python -m torture cuts --mutant all --rounds 200
	$(BIN)/python -m torture cuts --file-system xfs --mutant all --rounds 200
	$(BIN)/python -m torture cuts --rounds 1000
	$(BIN)/python -m torture cuts --file-system xfs --rounds 300

rehearsal: $(DEV)
	$(BIN)/python -m torture rehearsal --seconds 600

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/lint-imports

openapi: $(RUNTIME)
	$(BIN)/npt openapi > openapi.yaml.new
	mv openapi.yaml.new openapi.yaml

lock: $(DEV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python tools/lock.py
	@touch '$(RUNTIME)' '$(DEV)'

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): requirements.lock pyproject.toml tools/venv.sh $(KERNELS)
	@PYTHON='$(PYTHON)' sh tools/venv.sh '$(VENV)' requirements.lock
	@touch '$@'

$(DEV): requirements-dev.lock pyproject.toml tools/venv.sh $(KERNELS)
	@PYTHON='$(PYTHON)' sh tools/venv.sh '$(VENV)' requirements-dev.lock
	@touch '$(RUNTIME)' '$@'
