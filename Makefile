# `make test` is all that a fresh clone needs: it creates the environment, installs, and runs the suite.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EXTRAS = train,quantize,onnx,space,test,quality

.PHONY: install test test-slow quality style demo bench clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

install: $(VENV)/.installed

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: install
	$(BIN)/accelerate launch train/distill.py

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build outputs
