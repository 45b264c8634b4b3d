# `make demo` and `make test` set up everything they need in .venv.
# Needed on the machine: Python >= 3.10 with venv, and a C++20 compiler.

PYTHON ?= python3
# A bare `torch` would fetch gigabytes of CUDA packages. TORCH=torch takes the newest.
TORCH ?= torch==2.13.0
# On that torch, CUDA kernels could not run: `make cuda` checks that they compile. For a torch with
# CUDA, CLSD_FAST_CUDA=auto.
export CLSD_FAST_CUDA ?= off
# Kept, so that what has changed is compiled.
export CLSD_FAST_BUILD ?= build
BIN := .venv/bin
OPERATORS := conv3x3 residual_block pixel_shuffle_upsample upsample_tail pairwise_similarity \
    info_nce distance_ratio_loss library
SOURCES := $(shell find csrc cmake clsd_fast python -name '*.py' -o -name '*.c*' -o -name '*.h')
CXX_SOURCES := $(shell find csrc tests/cuda_emulation -name '*.c*' -o -name '*.h')

# The text after ## of each target's line.
.PHONY: help
help: ## print these lines
	@sed -n 's/^\([a-z][^:]*\):.* ## /\1\t/p' $(MAKEFILE_LIST) | \
	    awk -F '\t' '{ n = split($$1, names, " "); \
	        for (i = 1; i <= n; ++i) printf "%-14s%s\n", names[i], $$2 }'

.PHONY: demo test test-all lint bench bench-all sanitize cuda gpu-build gpu-test gpu-bench gpu-memcheck gpu-racecheck

demo: .venv/installed ## train a small CLSD student on photographs, into demo-output
	rm -rf demo-output
	$(BIN)/clsd demo --output demo-output

# Two processes, each with one thread. Here alone: pytest-benchmark measures nothing beside others.
WORKERS := -n 2 --dist worksteal

test: .venv/installed ## the tests of every kernel and error, in under 5 minutes
	$(BIN)/pytest $(WORKERS) -m "not thorough"

test-all: .venv/installed ## every test
	$(BIN)/pytest $(WORKERS)

lint: .venv/installed ## rules and format of Python and C++, and the types of Python
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy

.PHONY: format
format: .venv/installed ## bring Python and C++ into the format that lint asks for
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

bench: .venv/installed ## compare every operator and the step with PyTorch, in under 5 minutes
	$(BIN)/pytest benchmarks --no-compile -k "not 512x512" --benchmark-max-time 0.5 \
	    --benchmark-columns median,iqr,rounds

bench-all: .venv/installed ## the step, operators and losses against PyTorch, compiled too, an hour
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/step.py --scale 4
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/contrastive.py

# Needs no GPU. Builds into build/; without nvcc and cuobjdump, its tests are skipped.
cuda: .venv/installed ## compile the CUDA kernels for all architectures
	$(BIN)/pytest tests/cuda/test_build.py tests/cuda/test_sass.py

# On a machine with a GPU, in a Python that has a PyTorch for it: nothing is installed. The kernels
# are built into clsd_fast/, or LIBRARY= names a _C_cuda.so that was built elsewhere.
GPU_PYTHON ?= python3
GPU_TEST := PYTHONPATH=. $(GPU_PYTHON) -m pytest -m gpu -rs

gpu-build: ## on a machine with a GPU: build the kernels in place, or take LIBRARY=
	$(GPU_PYTHON) tools/build_cuda.py $(if $(LIBRARY),--library $(LIBRARY))

gpu-test: gpu-build ## there: the tests that need a GPU
	$(GPU_TEST) tests/gpu

gpu-bench: ## there: build, check and time; the report is gpu.json and gpu.md
	PYTHON=$(GPU_PYTHON) benchmarks/gpu.sh $(if $(LIBRARY),--library $(LIBRARY))

# Every kernel of ours at small sizes; of PyTorch's, some race by design, and some calls of CUDA
# fail by design. Without PyTorch's cache of memory, each tensor has its own bounds.
gpu-memcheck gpu-racecheck: gpu-%: gpu-build ## there: every kernel under compute-sanitizer
	@if command -v compute-sanitizer >/dev/null; then \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=. compute-sanitizer --tool $* \
	        --kernel-name kns=clsd --report-api-errors no --target-processes all --error-exitcode 1 \
	        $(GPU_PYTHON) -m pytest -m gpu -rs tests/gpu/test_cuda_gpu.py -k test_small; \
	else \
	    echo "gpu-$*: skipped, needs compute-sanitizer of the CUDA toolkit"; \
	fi

# Of this checkout, or of a source distribution.
SOURCE ?= .

# The operators' tests on kernels that report bad accesses and undefined operations; they take ten
# times as long there, so those of 1000 rows are left out, as in the temperature's gradient, and what
# `make test` leaves to `make test-all`.
sanitize: .venv/installed ## the operators' tests under AddressSanitizer and UBSan
	CLSD_FAST_SANITIZE=on $(BIN)/pip install --no-deps --no-build-isolation --upgrade \
	    --target build/sanitized $(SOURCE)
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized \
	    $(BIN)/pytest $(WORKERS) -m "not thorough" \
	    -k "(native or threads) and not 1000 and not gradient_of_the_temperature" \
	    $(addprefix tests/ops/test_,$(addsuffix .py,$(OPERATORS)))

.venv/installed: pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install "$(TORCH)" "setuptools>=77" "cmake>=3.24" "pybind11>=2.13" ninja
	$(BIN)/pip install --no-build-isolation ".[demo,test,lint]"
	touch $@
