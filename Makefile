# `make demo`, `make test`; while working `make check`. Each sets up the environment that it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test check test-slow lint docs benchmark figures studies clean

demo: .venv/demo.installed
	$(BIN)/interp demo --out runs/demo

test: .venv/all.installed lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not gemma"
	$(BIN)/python -m pytest -m "not slow and gemma" \
		`grep -rl mark.gemma tests experiments --include='test_*.py'`

# Under 90 seconds on two cores: what a change is likely to break, a room or two lines of it.
CHECKED := \
	tests/test_rooms.py \
	tests/test_languages.py \
	tests/models/test_anatomy.py \
	tests/data/test_queries.py \
	tests/data/test_templates.py \
	tests/unlearning/test_objectives.py \
	tests/unlearning/test_registry.py \
	tests/recovery/test_sites.py \
	tests/behaviour/test_probing.py \
	tests/figures/test_heads.py

check: .venv/all.installed lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not gemma" $(CHECKED)

test-slow: .venv/all.installed
	$(BIN)/python -m pytest -m slow

lint: .venv/all.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/all.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

benchmark: .venv/all.installed
	$(BIN)/python experiments/benchmark.py

figures: demo
	$(BIN)/python scripts/publish.py runs/demo figures/demo

# An hour or more each; what was made is not made again.
STUDIES := evidence dissect cross_lingual lingtea transfer
SIZE ?= full

studies: .venv/all.installed
	for study in $(STUDIES); do \
		from=runs/$$study-$(SIZE); to=figures/$$study; \
		$(BIN)/python -m experiments.$$study.run $(SIZE) || exit 1; \
		$(BIN)/python scripts/publish.py $$from $$to || exit 1; \
	done

.venv/demo.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=/path/to/python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,export]"
	touch $@

.venv/all.installed: .venv/demo.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,facts,dev]"
	touch $@

clean:
	rm -rf .venv runs site
