# In a fresh clone, run `make quickstart` or `make test`; nothing else is needed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-slow test-hf test-clients test-browser bench test-beam test-live test-t5x test-tpu torch lint setup clean

quickstart: setup  ## trains two small students on synthetic rows and compares them
	$(BIN)/dss quickstart --model-dir runs/quickstart

test: setup lint  ## all checks of CI
	$(BIN)/python -m pytest -m "not slow and not tpu_aot" -n 2 --dist worksteal --durations 30

test-slow: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow --timeout 1800

test-hf: torch  ## the tests against Hugging Face transformers
	$(BIN)/python -m pytest -m hf

# Google's client needs older versions of some libraries than constraints.txt pins.
CLIENTS := .venv-clients
test-clients: setup  ## the tests of dss serve and dss jobs with OpenAI's and Google's own clients
	test -d $(CLIENTS) || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  'openai>=2' 'google-cloud-aiplatform>=1.60' 'google-genai>=1.20'
	DSS_CLIENTS_PYTHON=$(CLIENTS)/bin/python $(BIN)/python -m pytest -m clients

BROWSER := .venv-browser
test-browser: setup  ## the console in Chromium, which must be on the PATH, or DSS_CHROMIUM
	test -d $(BROWSER) || $(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check \
	  'playwright>=1.50' 'axe-core-python>=0.1'
	DSS_BROWSER_PYTHON=$(BROWSER)/bin/python $(BIN)/python -m pytest -m browser -rs

# DATA_DIR is the data set that the paper published: data/cqa of its repository.
bench: torch  ## the short benchmarks: make bench DATA_DIR=data/cqa VOCABULARY=t5.model
	@test -n '$(DATA_DIR)' -a -n '$(VOCABULARY)' || { \
	  echo 'make bench DATA_DIR=data/cqa VOCABULARY=t5.model: give both' >&2; exit 2; }
	$(BIN)/python benchmarks/train_step_vs_torch.py --student mini --repeats 3 \
	  --data-dir '$(DATA_DIR)' --vocabulary '$(VOCABULARY)'
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/annotate_throughput.py

torch: setup  ## installs PyTorch and transformers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch]'

# T5X is installed from Git, not by `make setup`: see docs/t5x.md.
test-t5x: setup  ## the tests against T5X, which must be in $(VENV)
	@$(BIN)/python -c 'import t5x.models' 2>/dev/null || { \
	  echo 'T5X is not in $(VENV): $(BIN)/pip install --no-deps -r requirements-t5x.txt' >&2; exit 2; }
	$(BIN)/python -m pytest -m t5x --timeout 1800

test-tpu: setup  ## the tests that compile for TPUs; installs the compiler, 200 MB
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tpu]'
	$(BIN)/python -m pytest -m tpu_aot --timeout 1800

# Beam needs older versions of three libraries than constraints.txt pins.
BEAM := .venv-beam
test-beam:  ## the tests of `dss annotate --runner`, in their own environment
	test -d $(BEAM) || $(PYTHON) -m venv $(BEAM)
	grep -v -E '^(pillow|protobuf|pyarrow)==' constraints.txt > $(BEAM)/constraints.txt
	$(BEAM)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c $(BEAM)/constraints.txt -e '.[beam,test]'
	$(BEAM)/bin/python -m pytest -m beam

test-live: setup  ## the tests with a real teacher: make test-live DSS_LIVE_TEACHER=openai:MODEL DSS_LIVE_URL=http://HOST:PORT/v1
	DSS_LIVE_TEACHER='$(DSS_LIVE_TEACHER)' DSS_LIVE_URL='$(DSS_LIVE_URL)' \
	  $(BIN)/python -m pytest -m live -rs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dss_jax needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
