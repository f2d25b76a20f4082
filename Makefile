# make setup | bench | test. Works with the GNU make 3.81 that macOS ships.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
# How llama.cpp is compiled: without its image tools, which edge never uses, and on all cores.
BUILD := CMAKE_ARGS="-DLLAVA_BUILD=OFF $(CMAKE_ARGS)" \
	CMAKE_BUILD_PARALLEL_LEVEL=$(shell getconf _NPROCESSORS_ONLN)

.PHONY: setup bench test lint constraints clean

setup: $(READY)

bench: $(READY)
	$(PYTHON) bench.py demo -n 512 -r 3 --quality

test: lint
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The environment is made again only when the dependencies change.
$(READY): pyproject.toml constraints.txt | $(UV)
	@command -v c++ >/dev/null 2>&1 || { echo "edge needs a C++ compiler to build llama.cpp: run 'xcode-select --install' (macOS) or 'apt-get install g++' (Debian, Ubuntu), then make again." >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time compiles llama.cpp: some minutes)"
	@test -x $(PYTHON) || $(UV) venv --quiet --python '>=3.11' $(VENV)
	@$(BUILD) $(UV) pip install --quiet --python $(PYTHON) --constraint constraints.txt --group dev --editable .
	@touch $(READY)

.tools/bin/uv:
	@echo "Fetching uv into .tools"
	@python3 -m venv .tools || { echo "edge needs uv or a python3 with venv: install uv, or run 'apt-get install python3-venv' (Debian, Ubuntu), then make again." >&2; rm -rf .tools; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv

# Take newer versions of everything, for every platform and Python that edge runs on.
constraints: | $(UV)
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --group dev --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .tools models profiles/local
