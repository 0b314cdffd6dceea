# make study: the scaling study of this machine. make test: all tests. Both set up .venv first.
# make quick: what to run while you work. make docs: the pages of docs/ as HTML. make lint: style and import rules.
# make coverage: which lines of the code for CUDA no test reaches.
# make gpu: what a GPU alone can show, in nine minutes: correctness, README's table, CITE-seq's shape, the survey.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready
EXTRAS ?= test,published,anndata,docs
RUN := PATH="$$PWD/$(BIN):$$PATH"
COVERAGE := $(RUN) COVERAGE_FILE="$$PWD/.coverage" coverage
AT_ONCE := -n 2 --dist loadfile --no-loadscope-reorder # the longest files first, see tests/conftest.py
PIP := $(BIN)/pip install --disable-pip-version-check -c constraints.txt

.PHONY: study gpu test coverage quick lint docs setup clean
setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	@echo "== set-up, 1 of 3: an environment of Python in $$PWD/.venv"
	$(PYTHON) -m venv .venv
	@echo "== set-up, 2 of 3: the packages that constraints.txt pins; PyTorch, the largest, takes a minute"
	$(PIP) -e '.[$(EXTRAS)]'
	@echo "== set-up, 3 of 3: the published package, to compare with"
	$(if $(findstring published,$(EXTRAS)),$(PIP) --no-deps lsmmdma)
	@touch $@
	@echo "== set-up is done"

study: $(SETUP)
	@echo "== the scaling study: each cell is printed as it ends, with the time left; results/ gets all that comes out"
	$(RUN) snakemake --cores 1 --resources gpu=1

gpu: EXTRAS := $(EXTRAS),keops-cuda
gpu: $(SETUP)
	$(RUN) python -m benchmarks gpu-check

test: $(SETUP)
	@echo "== all tests, two at a time: KeOps compiles its formulas on first use, some ten seconds each"
	$(RUN) pytest $(AT_ONCE) -m "not alone" --durations=30
	@echo "== the tests that measure time, one after the other"
	$(RUN) pytest -m alone --durations=30

coverage: $(SETUP)
	@echo "== all tests as in make test, some of which are too slow so; then the lines for CUDA that none reaches"
	$(COVERAGE) erase
	-$(COVERAGE) run -m pytest $(AT_ONCE) -m "not alone"
	-$(COVERAGE) run -m pytest -m alone
	$(COVERAGE) combine --quiet
	$(COVERAGE) report

quick: lint
	$(RUN) pytest $(AT_ONCE) -m "not slow and not gpu and not tensorflow"

lint: $(SETUP)
	$(RUN); ruff check && ruff format --check && lint-imports --no-cache && snakemake --lint

docs: $(SETUP)
	$(RUN) sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "== open docs/_build/html/index.html"

clean:
	rm -rf .venv .snakemake docs/_build
