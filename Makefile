# Two commands on a fresh clone: `make demo` and `make test`. Both set up .venv first; a second call starts at once.
PYTHON ?= python3
BIN := .venv/bin
MADE := .venv/made
# A file's tests share what was made for them: one process runs them all, and files begin in the order of conftest.py.
SPREAD := --dist loadfile --no-loadscope-reorder
# Python keeps what it compiled, whatever the surroundings say: a process of a test then starts sooner.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long test-processors check benchmark results benefits protection clean

demo: $(MADE)
	$(BIN)/polyclinic demo

test: $(MADE)
	$(BIN)/python -m pytest -n auto $(SPREAD)

# One process more than cores: some of these tests wait for processes most of the time.
test-long: $(MADE)
	$(BIN)/python -m pytest -n $$(($$(nproc) + 1)) $(SPREAD) -m long

# The numeric tests with fewer instructions and with two threads, as other processors would run them.
test-processors: $(MADE)
	$(BIN)/python tests/processors.py

# Style, types and import rules.
check: $(MADE)
	$(BIN)/ruff check src tests benchmarks studies docs
	$(BIN)/ruff format --check src tests benchmarks studies docs
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(MADE)
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/channel.py
	$(BIN)/python benchmarks/privacy.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/federation.py
	$(BIN)/python benchmarks/secure.py

# docs/results.md from the studies; needs POLYCLINIC_DATA.
results: $(MADE)
	$(BIN)/python studies/make_results.py

# docs/benefits.md from the studies in studies/benefits; needs POLYCLINIC_DATA.
benefits: $(MADE)
	$(BIN)/python studies/make_benefits.py

# docs/protection.md from the studies in studies/protection; needs POLYCLINIC_DATA. Nothing else should run meanwhile:
# it measures times, too.
protection: $(MADE)
	$(BIN)/python studies/make_protection.py

$(MADE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Polyclinic needs Python 3.11 or newer, this is $$($(PYTHON) --version); call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,develop]'
	@touch $(MADE)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
