# Two commands do all the set-up: `make demo` and `make test`. Both work on a fresh machine with Python ≥ 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
export PYTHONHASHSEED := 0

.PHONY: demo test test-fast test-lowest lint docs wheel format browser clean

# The environment is made anew when the dependencies change.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attribench needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/attribench run --method nda --dataset digits

# One process a core, each with whole files, whose fixtures are then made once.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

test: $(VENV)/ready browser
	$(PYTEST) --durations 10

# While working: what trains models, or starts processes or a browser, is left out.
test-fast: $(VENV)/ready
	$(PYTEST) -m 'not slow'

# The lowest versions that pyproject.toml declares, in an environment of their own, which takes some 7 GB: torch came with CUDA.
# Of what development needs only pytest: linters want newer versions of what attribench itself depends on.
$(LOWEST)/ready: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable . pytest
	touch $@

# A run from images to the table, then the tests of what other libraries change first: options, messages, tables and figures.
test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/attribench run --method nda,dtrak --preset smoke --workdir $(LOWEST)/runs --results $(LOWEST)/results
	$(LOWEST)/bin/python -m pytest tests/reporting tests/configuration tests/computing tests/test_cli.py

# The pages are tested in Chromium. Where it is not there and cannot be installed, those tests are skipped and say so.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "Chromium is not installed: its tests will be skipped."

# mypy and import-linter see attribench.methods and its sisters in a copy laid out as installed.
lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p attribench
	MYPYPATH=build/typecheck $(BIN)/mypy benchmarks examples
	cd build/typecheck && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache

# The site, into build/site; it needs no network to be built or read.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The wheel as its users get it: installed into an empty environment and run in an empty folder, with the committed numbers.
wheel: $(VENV)/ready
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet torch torchvision
	build/wheel/venv/bin/python -m pip install --quiet dist/*.whl
	mkdir build/wheel/empty
	cd build/wheel/empty && ../venv/bin/attribench --version
	cd build/wheel/empty && ../venv/bin/attribench list
	cd build/wheel/empty && ../venv/bin/attribench run --method nda,pixel-cosine,random --dataset digits
	build/wheel/venv/bin/python tests/same_results.py build/wheel/empty/results results
	rm -rf build/wheel

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
