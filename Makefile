# make setup | demo | test | nightly | browser | qemu | docs | wheel | lint | gpu | clean.  PYTHON chooses the
# interpreter (3.11 or later); one that has torch already is used as it is, without the network, through a virtual
# environment that sees its packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
# CPU builds of torch live on an index of their own; the default index has the multi-gigabyte CUDA builds.
TORCH_INDEX := --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu

.PHONY: setup demo test nightly browser qemu docs wheel lint gpu clean
setup: $(VENV)/.built

$(VENV)/.packages: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sparsekern: Python 3.11 or later is needed: make PYTHON=..."; exit 1; }
	@command -v g++ >/dev/null || { echo "sparsekern: no C++ compiler: apt install g++"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "sparsekern: Python's headers are missing: apt install python3-dev"; exit 1; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then \
	  echo "using the torch of $(PYTHON)"; \
	  $(PYTHON) -m venv --system-site-packages --without-pip $(VENV) && \
	  $(PYTHON) -c 'import site; print(*site.getsitepackages(), sep="\n")' \
	    >"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"; \
	else \
	  $(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "sparsekern: Python's venv is missing: apt install python3-venv"; exit 1; }; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH_INDEX) "$$(grep '^torch==' requirements-dev.txt)" && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH_INDEX) -r requirements-dev.txt; \
	fi
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: setup
	$(BIN)/python benchmarks/demo.py

test: setup browser
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Ten thousand examples of each op, with other numbers every time: hours.
nightly: setup
	$(BIN)/python -m pytest -n 2 tests/test_any_shape.py --hypothesis-profile=nightly

# For the tests of pages: any Chromium on the PATH, or else that of Debian and Ubuntu.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "sparsekern: the tests of pages need Chromium: apt install chromium"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }

# The kernels on processors without AVX-512 and without AVX, emulated: some ten minutes each.
qemu: setup
	tests/qemu.sh

# A page per module, from the docstrings, in build/docs.
docs: setup
	$(BIN)/python docs/api.py build/docs

wheel: setup
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps -w dist .

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/emulated -name "*.h" -o -name "*.cpp" -o -name "*.cu")

# On a machine with a GPU, offline and in place, with the packages of $(PYTHON); see docs/gpu.md for ARGS.
gpu:
	@$(PYTHON) benchmarks/gpu.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info sparsekern/*.so
