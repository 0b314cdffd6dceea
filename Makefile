# make study: the scaling study of this machine. make test: the tests. Both set up .venv first.
# make gpu: what a GPU alone can show: its tests, README's table, CITE-seq's shape, the survey.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready
EXTRAS ?= test,published,anndata
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: study gpu test lint setup clean
setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(if $(findstring published,$(EXTRAS)),$(BIN)/pip install --quiet -c constraints.txt --no-deps lsmmdma)
	touch $@

study: $(SETUP)
	$(RUN) snakemake --cores 1 --resources gpu=1

gpu: $(SETUP)
	$(RUN) python -m benchmarks check --set device=cuda
	$(RUN) pytest -m gpu
	$(RUN) python -m benchmarks sweep --set study=table --p 100 --n 1000 --budget-s 60
	$(RUN) python -m benchmarks sweep --set study=table --p 1000 --n 10000 100000 1000000 \
		--variant primal-keops primal-fused --budget-s 120
	$(RUN) python -m benchmarks citeseq --set citeseq.cell_budget_s=30 --set citeseq.variants=[primal-fused]
	$(RUN) python -m benchmarks sweep --set study=survey --budget-s 240
	$(RUN) python -m benchmarks table --set study=survey
	$(RUN) python -m benchmarks figures --set study=survey
	$(RUN) python -m benchmarks report --set study=survey

test: $(SETUP)
	$(RUN) pytest

lint: $(SETUP)
	$(RUN); ruff check && ruff format --check && snakemake --lint

clean:
	rm -rf .venv .snakemake
