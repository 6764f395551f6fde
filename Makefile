# Two commands matter: `make demo` runs a real ensemble, `make test` runs every check. Both make and fill .venv first.
# Works with what a bare Debian 12 has (python3, python3-venv, make); `.ci/run` installs even that.

PYTHON ?= python3
PYTEST_ARGS ?=
# Three at a time even where there are more processors: most tests wait for servers, some load all processors.
JOBS ?= 3

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXAMPLE := examples/lennard_jones
PLUGINS := $(patsubst %/pyproject.toml,./%,$(wildcard plugins/*/pyproject.toml))
MANIFESTS := pyproject.toml $(PLUGINS:%=%/pyproject.toml)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test test-faults lint format bench docs changelog clean distclean

help:
	@echo "make demo    run the example ensemble in examples/lennard_jones (about a minute)"
	@echo "make test    lint, types and all tests; PYTEST_ARGS='-k claim' for some, JOBS=0 one at a time"
	@echo "make test-faults  the fault tests in full, an hour; renews the table in docs/reference/fault-tests.md"
	@echo "make lint    ruff and mypy only          make format  let ruff reformat"
	@echo "make bench   the benchmarks              make docs    renew the generated pages"
	@echo "make changelog  print what the next release's changelog will say"
	@echo "make clean   delete caches and builds    make distclean  delete .venv too"

demo: $(VENV)/.demo-installed
	@$(BIN)/python $(EXAMPLE)/demo.py

# A target of its own, so that pytest's closing line is the last one printed.
test: lint
	@$(BIN)/python -m compileall -q balsam_core plugins  # tests start thousands of programs, which may not write it
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-faults: $(VENV)/.tools-installed
	@rm -f $(VENV)/fault-tests.jsonl
	@BALSAM_FAULTS=full BALSAM_FAULTS_TABLE=$(CURDIR)/$(VENV)/fault-tests.jsonl \
	    $(BIN)/python -m pytest --timeout=3600 $(PYTEST_ARGS) \
	    tests/faults tests/integration/test_interleavings.py \
	    tests/conformance/test_duckdb.py tests/conformance/test_broken_backends.py
	@test -n "$(PYTEST_ARGS)" || $(BIN)/python docs/generate_fault_tests.py $(VENV)/fault-tests.jsonl

lint: $(VENV)/.tools-installed $(VENV)/.mysql-driver-installed
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(VENV)/.tools-installed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(VENV)/.tools-installed
	@set -e; for bench in benchmarks/bench_*.py; do $(BIN)/python "$$bench"; done

docs: $(VENV)/.tools-installed
	@$(BIN)/python docs/generate_cli.py
	@$(BIN)/python docs/generate_hooks.py
	@$(BIN)/python docs/generate_rooms.py

changelog: $(VENV)/.tools-installed
	@$(BIN)/towncrier build --draft

clean:
	@rm -rf build dist plugins/*/build plugins/*/dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)

# ------------------------------------------------------------------------------------------------- the virtual environment
# Stamps instead of file targets: a virtual environment is only there when its last step has succeeded.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Balsam needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	    { echo "Making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.created pyproject.toml plugins/sqlite/pyproject.toml $(EXAMPLE)/requirements.txt
	@echo "Installing balsam-core, balsam-sqlite and the example's requirements into $(VENV)"
	@$(PIP) install -qq -e . -e ./plugins/sqlite -r $(EXAMPLE)/requirements.txt
	@touch $@

# pip reads dependency groups since 25.1; Debian 12 has 23.0.
$(VENV)/.tools-installed: $(VENV)/.created $(MANIFESTS) $(EXAMPLE)/requirements.txt
	@echo "Installing Balsam and the tools of its developers into $(VENV)"
	@$(PIP) install -qq --upgrade "pip>=25.1"
	@$(PIP) install -qq -e . $(patsubst %,-e %,$(filter-out ./plugins/mysql,$(PLUGINS))) --group dev -r $(EXAMPLE)/requirements.txt
	@$(PIP) install -qq --no-deps -e ./plugins/mysql
	@touch $@ $(VENV)/.demo-installed

# mysqlclient is compiled here. Without the client headers balsam-mysql lacks its driver, and the tests on MariaDB are
# skipped; the rest is as good.
$(VENV)/.mysql-driver-installed: $(VENV)/.tools-installed
	@if $(PIP) install -q --group mysql-driver >$(VENV)/mysql-driver.log 2>&1; then touch $@; else \
	    echo "mysqlclient can't be built here, so the tests on MariaDB are skipped. It needs: apt-get install" \
	    "default-libmysqlclient-dev build-essential python3-dev pkg-config (what happened: $(VENV)/mysql-driver.log)"; fi
