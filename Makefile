# `make demo` and `make test` set up everything they need in .venv.
# Needed on the machine: Python >= 3.10 with venv, and a C++17 compiler.

PYTHON ?= python3
# A bare `torch` would fetch gigabytes of CUDA packages. TORCH=torch takes the newest.
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := $(shell find csrc clsd_fast python -name '*.py' -o -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint

demo: .venv/installed
	rm -rf demo-output
	$(BIN)/clsd demo --output demo-output

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.venv/installed: pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install "$(TORCH)" "setuptools>=77" "cmake>=3.24" "pybind11>=2.13" ninja
	$(BIN)/pip install --no-build-isolation ".[demo,test,lint]"
	touch $@
