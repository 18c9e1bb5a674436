# The commands of every clone. Each creates .venv when it is missing and uses it again when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/cpu/*.h kernels/cpu/*.cpp)
OUT ?= bench/results

.PHONY: install demo test test-main test-interpreter lint format bench gpu wheel clean

install: $(STAMP)

# Build isolation would download a second torch just for its headers, so the build tools go into .venv itself.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "setuptools>=77" wheel "cmake>=3.24" ninja "torch>=2.10" torchvision
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/barlow-fast pretrain

# Two processes side by side, each on one core or so: the Triton kernels run in Triton's interpreter, which must be on
# before Triton is imported. Each prints what it has to say when it is done.
test: install
	$(MAKE) --no-print-directory -j2 --output-sync=target test-main test-interpreter

test-main: install
	$(BIN)/python -m pytest

test-interpreter: install
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/triton_kernels/test_interpreter.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/bans.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m bench compilation
	$(BIN)/python -m bench loss
	$(BIN)/python -m bench distributed
	$(BIN)/python -m bench memory
	$(BIN)/python -m bench views
	$(BIN)/python -m bench train
	$(BIN)/python -m bench report

# Runs from the source tree on a machine without a network: nothing is installed, any Python that has torch will do.
# Under ten minutes, and goes on where it stopped when run again. PARTS, BUDGET and GPU_FLAGS: see bench/README.md.
BUDGET ?= 540
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --resume --budget-seconds $(BUDGET) \
	    --parts "$(PARTS)" --out "$(OUT)" $(GPU_FLAGS)

wheel: install
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf build dist *.egg-info kernels/cpu/*.so kernels/cpu/native_build.txt
