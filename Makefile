# Everything here sets itself up: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types samples benchmarks clean

demo: $(READY)  ## the whole pipeline on handwritten digits; leaves everything in demo/
	@$(MAKE) --no-print-directory -j2 -f examples/Makefile PRUNECLI=$(BIN)/prunecli DATA=digits EPOCHS=40 OUT=demo
	@cat demo/report.txt
	@echo "checkpoints, ONNX files and report.html are in demo/"

test: $(READY)  ## the tests, two at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

samples: $(READY)  ## make sample_checkpoints/ again
	$(MAKE) --no-print-directory -f sample_checkpoints/Makefile PRUNECLI=$(BIN)/prunecli

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
