# Two commands: `make demo` and `make test`. Each sets up the virtual environment that it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test test-slow lint benchmark figures studies clean

demo: .venv/demo.installed
	$(BIN)/interp demo --out runs/demo

test: .venv/all.installed lint
	$(BIN)/python -m pytest -n 2 -m "not slow and not gemma"
	$(BIN)/python -m pytest -m "not slow and gemma" `grep -l mark.gemma tests/*.py`

test-slow: .venv/all.installed
	$(BIN)/python -m pytest -m slow

lint: .venv/all.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

benchmark: .venv/all.installed
	$(BIN)/python experiments/benchmark.py

figures: demo
	mkdir -p figures/demo
	cp runs/demo/figures/*.png runs/demo/figures/*.svg runs/demo/figures/*.pdf figures/demo/

# An hour or more each; what was made is not made again. Without the HTML, of 5 MB a figure.
STUDIES := dissect cross_lingual lingtea transfer
SIZE ?= full

studies: .venv/all.installed
	for study in $(STUDIES); do \
		from=runs/$$study-$(SIZE); to=figures/$$study; \
		$(BIN)/python experiments/$$study.py $(SIZE) || exit 1; \
		rm -rf $$to; mkdir -p $$to/figures $$to/tables; \
		cp $$from/study.json $$from/findings.md $$to/; \
		cp $$from/tables/*.csv $$to/tables/; \
		cp $$from/figures/*.json $$from/figures/*.png $$from/figures/*.svg $$to/figures/; \
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
	rm -rf .venv runs
