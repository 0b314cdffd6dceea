# make study: the scaling study of this machine. make test: the tests. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready
EXTRAS ?= test,published,anndata

.PHONY: study test lint setup clean
setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(if $(findstring published,$(EXTRAS)),$(BIN)/pip install --quiet -c constraints.txt --no-deps lsmmdma)
	touch $@

study: $(SETUP)
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores 1 --resources gpu=1

test: $(SETUP)
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest

lint: $(SETUP)
	PATH="$(CURDIR)/$(BIN):$$PATH"; ruff check && ruff format --check && snakemake --lint

clean:
	rm -rf .venv .snakemake
