# `make test` is all that a fresh clone needs: it creates the environment, installs, and runs the suite.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
EXTRAS = train,quantize,onnx,space,test,quality

.PHONY: install test test-slow test-portable test-edge quality style demo bench clean

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

# The tests that depend on the processor, with the kernels of older and newer ones: torch's own, oneDNN's, and threads.
test-portable: install
	for settings in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ATEN_CPU_CAPABILITY=avx512 \
		ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=1 OMP_NUM_THREADS=2; do \
		echo "== $$settings"; env $$settings $(BIN)/python -m pytest -q -m processor || exit 1; \
	done

# LiteRT Torch takes 0.7 GB, and older versions of a few packages than the rest needs.
test-edge: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[edge]"
	$(BIN)/python -m pytest tests/train/deployment/test_edge.py

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Without the options, accelerate would list their defaults.
demo: install
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no train/distill.py

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build outputs
