# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
OUT ?= demo-out
NANO ?= runs/nano
SAMPLE := sample
export TOKENIZERS_PARALLELISM := false

.PHONY: install install-test install-sim demo test lint nano sample clean

install: $(VENV)/.base

$(VENV)/.base: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

install-test: $(VENV)/.test

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e '.[test]'
	touch $@

install-sim: $(VENV)/.sim

$(VENV)/.sim: $(VENV)/.base
	$(PIP) -e '.[sim]'
	touch $@

demo: install
	$(BIN)/wristaugment run --dataset droid --data-dir $(SAMPLE) --out $(OUT)
	$(BIN)/wristaugment verify $(OUT) --source $(SAMPLE)
	$(BIN)/wristaugment evaluate --dataset droid --data-dir $(SAMPLE) \
	  --against observation/wrist_image_left --copy $(OUT) \
	  --recipes projection,mean,anchor --page $(OUT)-page.html
	@echo "dataset: $(OUT)  (tfds.load('droid_101', data_dir='$(OUT)'))"
	@echo "page:    $(OUT)-page.html  (open it in a browser)"

test: install-test
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The embedded weights, from nothing; every step goes on where it was stopped.
nano: install-sim
	BIN=$(BIN) OUT=$(NANO) bash jobs/nano.sh

clean:
	rm -rf $(OUT) $(OUT)-page.html
