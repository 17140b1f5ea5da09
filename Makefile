# The whole contributor interface. Each target sets up .venv first when it is not there.
PYTHON ?= python3
VENV ?= .venv
BENCHMARKS ?= read where start images pack write
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

SECONDS ?= 600
SEED ?= 1

FLOORS ?= .venv-floors
FLOOR_EXTRAS := fast,parquet,datasets,trainer,completion,view,remote

.PHONY: site docs-check floors demo test test-quick lint docs bench campaign oracle clean setup

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/pytest -n 2 --dist worksteal -q

test-quick: setup
	$(BIN)/pytest -n 2 -q -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p shardkit
	$(BIN)/mypy cli examples tests

# The lowest versions that setup.cfg allows, in an environment of their own (Python 3.11).
floors:
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-floors.txt '.[$(FLOOR_EXTRAS)]'
	PYTHONPATH=tests/helpers $(FLOORS)/bin/python tests/helpers/floors.py

docs: setup
	$(BIN)/python docs/vectors/make.py
	$(BIN)/python docs/reference/make.py

# The documents as a site, in site/; every link of it is looked at.
site: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  'mkdocs>=1.6' 'mkdocs-material>=9.5'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The code blocks of the tutorial and the how-tos.
docs-check: setup
	$(BIN)/python docs/snippets.py

bench: setup
	mkdir -p bench-out
	for name in $(BENCHMARKS); do \
	  $(BIN)/python benchmarks/$$name.py --json > bench-out/$$name.json || exit 1; done
	$(BIN)/python benchmarks/report.py $(BENCHMARKS:%=bench-out/%.json)

# Faults injected for SECONDS, by SEED; ONLY=KIND for one kind, and CASE=N for one fault of it.
# JOBS=N processes at once (one a core), JSON=FILE for all counts and faults.
campaign: setup
	PYTHONPATH=tests/helpers $(BIN)/python -m campaign --seconds $(SECONDS) --seed $(SEED) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(CASE),--case $(CASE)) \
	  $(if $(JOBS),--jobs $(JOBS)) $(if $(JSON),--json $(JSON))

# Ids and masks of all chat templates at hand against transformers: one table. PLACES=... for other
# folders of templates or tokenizers, OVER=TOKENIZER for a real one under the templates.
oracle: setup
	PYTHONPATH=tests/helpers $(BIN)/python -m template_oracle $(PLACES) $(if $(OVER),--over $(OVER))

setup: $(VENV)/ready

$(VENV)/ready: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(VENV)/ready

clean:
	rm -rf build dist site demo-out bench-out .venv $(FLOORS) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
