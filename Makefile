# The README's two commands are `make demo` and `make test`; everything else serves them.

# Others can be chosen: make install VENV=.venv-3.12 PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

# llama.cpp's multimodal part is not used. With options of one's own (CUDA) no cached build will do.
CMAKE_ARGS ?= -DLLAVA_BUILD=OFF
export CMAKE_ARGS
ifneq ($(origin CMAKE_ARGS),file)
PIP += --no-cache-dir
endif

# june's own kernels are for x86-64; on CPUs that run none of them llama.cpp and ONNX Runtime compute alone.
LLAMA_OVERRIDES := june/kernels/llama_overrides.avx512.kernel june/kernels/llama_overrides.avx2.kernel
KERNELS := $(if $(filter x86_64,$(shell uname -m)),$(LLAMA_OVERRIDES) june/kernels/vits.kernel)

.PHONY: demo test test-pythons test-container lint install install-dev models kernels lock clean

demo: models
	@$(BIN)/python -m june ask june/bench/questions/sleep.ogg --out reply.ogg

test: install-dev models
	@$(BIN)/python -m pytest -m "not slow"

# Tests of what differs between Pythons: the libraries' builds, and asyncio.
OTHER_PYTHONS := 3.12 3.13
TESTS_OF_PYTHONS := tests/test_audio.py tests/conversation tests/chat tests/commands/test_ask.py tests/commands/test_run.py

test-pythons: $(OTHER_PYTHONS:%=test-python-%)

# One after another: they share a wheel of llama.cpp, and the cores.
ifneq ($(filter test-python%,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

# A command of that name may be a shim of pyenv's that runs nothing, so it is tried. The wheel takes minutes to compile,
# so that it is made only for a Python that is here. With REQUIRE_PYTHONS=1 one that is not here is an error.
AS_ASKED := $(if $(filter file,$(origin CMAKE_ARGS)),env -u CMAKE_ARGS)
test-python-%: models
	@if $(BIN)/python -c "import sys; assert sys.version.startswith('$*.')" 2>/dev/null; then \
		echo "$(VENV) has Python $*: make test tries june with it."; exit 0; fi; \
	python=$$(for each in python$* $$HOME/.pyenv/versions/$*.*/bin/python; do \
		if "$$each" -c "import ensurepip, sys; assert sys.version.startswith('$*.')" 2>/dev/null; then echo "$$each"; break; fi; done); \
	if [ -z "$$python" ]; then \
		echo "june was not tried with Python $*: there is no python$* that can make environments, in PATH or of pyenv."; \
		test -z "$(REQUIRE_PYTHONS)"; exit; \
	fi; \
	echo "Trying june with Python $* ..." && \
	$(AS_ASKED) $(MAKE) --no-print-directory $(VENV)/wheels && \
	env -u CMAKE_ARGS $(MAKE) --no-print-directory \
		VENV=.venv-$* PYTHON="$$python" WHEELS=$(VENV)/wheels .venv-$*/.installed-dev && \
	.venv-$*/bin/python -m pytest -m "not slow" $(TESTS_OF_PYTHONS)

# Builds the image with an engine of Docker's, and runs it. Needs root, Debian and 4 GB of disk.
test-container: install-dev models
	@command -v debootstrap >/dev/null || { echo "The container engine is installed with debootstrap: apt-get install debootstrap"; exit 1; }
	@$(BIN)/python -m pytest tests/deploy/test_image.py

lint: install-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror june/kernels/*.?pp
	@$(BIN)/mypy
	@$(BIN)/lint-imports

install: $(VENV)/.installed kernels

install-dev: $(VENV)/.installed-dev $(VENV)/.installed-programs kernels

models: install
	@$(BIN)/python -m june models pull starter

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "june needs Python 3.11 or newer; PYTHON=... names one.")'
	@$(PYTHON) -m venv $(VENV) || { echo "Making a virtual environment needs a package: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

kernels: $(KERNELS)

june/kernels/llama_overrides.avx512.kernel: INSTRUCTIONS := -march=x86-64-v4 -mavx512vnni
june/kernels/llama_overrides.avx2.kernel: INSTRUCTIONS := -march=x86-64-v3
june/kernels/vits.kernel: INSTRUCTIONS := -march=x86-64-v4 -mavx512bf16
$(LLAMA_OVERRIDES): june/kernels/llama_overrides.cpp
june/kernels/vits.kernel: june/kernels/vits.cpp
$(KERNELS): $(wildcard june/kernels/*.hpp)
	@$$(command -v c++ g++ clang++ | head -n 1) -std=c++20 -O3 $(INSTRUCTIONS) -shared -fPIC -pthread $(filter %.cpp,$^) -o $@ \
		|| { rm -f $@; echo "june's kernel $(notdir $@) cannot be compiled with this compiler: june will work, but take longer."; }

# Also what llama-cpp-python is compiled with, so that its build is pinned too.
$(VENV)/.installed-build: requirements/build.txt | $(BIN)/python
	@command -v c++ g++ clang++ >/dev/null || { echo "llama.cpp is compiled on this machine, and there is no C++ compiler: apt-get install g++"; exit 1; }
	@echo "Installing the build tools ..."
	@$(PIP) --requirement requirements/build.txt
	@touch $@

# WHEELS names a folder with a wheel of llama.cpp that another environment compiled.
$(VENV)/.installed: requirements/runtime.txt $(VENV)/.installed-build
	@$(if $(WHEELS),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WHEELS)/*.whl, \
		echo "Installing june's libraries; llama.cpp is compiled, which takes 4 to 8 minutes on two cores, once ...")
	@$(PIP) --no-build-isolation --requirement requirements/runtime.txt
	@touch $@

# The wheel is for every Python 3; pip's cache would give it to the Python only that compiled it.
$(VENV)/wheels: $(VENV)/.installed
	@rm -rf $@
	@sed -n '/^llama-cpp-python==/,/[^\\]$$/p' requirements/runtime.txt >$(VENV)/llama.txt
	@$(PIP:install=wheel) --no-deps --no-build-isolation --requirement $(VENV)/llama.txt --wheel-dir $@

$(VENV)/.installed-dev: requirements/dev.txt $(VENV)/.installed
	@echo "Installing what tests and linters need ..."
	@$(PIP) --no-build-isolation --requirement requirements/dev.txt
	@touch $@

# Real programs that tests run beside june: a Prometheus, a browser for the owner's page, and curl.
PROGRAMS := prometheus chromium curl
$(VENV)/.installed-programs: | $(BIN)/python
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ]; then \
		echo "Installing what tests run beside june: $(PROGRAMS) ..."; \
		as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		{ $$as_root apt-get update && \
		  DEBIAN_FRONTEND=noninteractive $$as_root apt-get install --yes --no-install-recommends $(PROGRAMS); } >$(VENV)/programs.log 2>&1 \
		|| { tail -n 5 $(VENV)/programs.log; echo "Tests need these Debian packages: apt-get install $(PROGRAMS)"; exit 1; }; \
	fi
	@touch $@

# Pins what pyproject.toml asks for: versions and hashes, no addresses; one version of a library for every Python
# where there is one. Needs uv.
LOCK := uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links --quiet
lock:
	$(LOCK) --group pyproject.toml:build --output-file requirements/build.txt
	$(LOCK) pyproject.toml --extra piper --output-file requirements/runtime.txt
	$(LOCK) pyproject.toml --extra piper --extra bench --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt

clean:
	rm -rf $(VENV) $(OTHER_PYTHONS:%=.venv-%)
