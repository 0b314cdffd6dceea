"""The CITE-seq experiment: the stand-in has shape, sparsity and match, a file is read as it is, and all is named."""

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import yaml
from conftest import ROOT, own_config
from test_records import record

from benchmarks import config as configuration
from benchmarks import study
from benchmarks.config import ConfigError
from benchmarks.experiments import citeseq
from benchmarks.experiments.citeseq import Real, StandIn
from benchmarks.measuring import records
from mmdma_core.matching.metrics import foscttm

CONFIG = own_config()
TINY = {
    "path": None,
    "layer": "counts",
    "cells": 300,
    "genes": 200,
    "proteins": 12,
    "density": 0.1,
    "cpu_fraction": 0.2,
    "variants": ["primal", "primal-keops"],
    "epochs": 5,
    "cell_budget_s": 10,
    "cell_timeout_s": 100,
}


# --- the stand-in ---


def test_the_stand_in_has_the_shape_the_sparsity_and_unit_rows():
    x, y, match = StandIn(300, 200, 12, 0.1).views(250, 200, seed=4)
    assert scipy.sparse.issparse(x)
    assert (x.format, x.shape, y.shape) == ("csr", (250, 200), (250, 12))
    assert x.dtype == y.dtype == np.float32
    assert x.nnz / (250 * 200) == pytest.approx(0.1, rel=0.05)
    assert np.count_nonzero(y) > 0.9 * y.size
    assert (x.data > 0).all()
    np.testing.assert_allclose(x.multiply(x).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((y**2).sum(axis=1), 1, rtol=1e-5)
    assert sorted(match) == list(range(250))
    assert (match != np.arange(250)).any()


@pytest.mark.parametrize("density", [0.01, 0.5])
def test_the_density_is_the_one_asked_for(density):
    x, _, _ = StandIn(300, 1000, 5, density).views(300, 1000, seed=0)
    assert x.nnz / (300 * 1000) == pytest.approx(density, rel=0.1)


def test_the_match_joins_what_both_views_know_of_a_cell():
    """Genes foretell where a cell lies among the proteins, if the regression is told the match."""
    x, y, match = StandIn(300, 800, 40, 0.2).views(300, 800, seed=4)
    spread = y - y.mean(axis=0)
    place = (spread @ np.linalg.svd(spread, full_matrices=False)[2][:2].T)[match]
    genes = np.linalg.svd(np.c_[x.toarray(), np.ones(300)], full_matrices=False)[0][:, :5]

    def predicted(order):
        return genes @ np.linalg.lstsq(genes, place[order], rcond=None)[0]

    right, wrong = np.arange(300), np.random.default_rng(0).permutation(300)
    assert foscttm(predicted(right), place, right) < 0.2
    assert foscttm(predicted(wrong), place[wrong], right) > 0.3


def test_the_seed_decides_the_stand_in_and_the_blocks_do_not(monkeypatch):
    stand_in = StandIn(300, 200, 12, 0.1)
    first, other = stand_in.views(100, 200, seed=1), stand_in.views(100, 200, seed=2)
    monkeypatch.setattr(citeseq, "_BLOCK_ELEMENTS", 7 * 200)
    again = stand_in.views(100, 200, seed=1)
    for one, two in zip(first, again, strict=True):
        assert abs(one - two).max() == 0
    assert abs(first[0] - other[0]).max() > 0


def test_the_stand_in_holds_no_matrix_of_all_genes(monkeypatch):
    monkeypatch.setattr(citeseq, "_BLOCK_ELEMENTS", 2**14)
    monkeypatch.setattr(citeseq, "_SAMPLE", 16)
    n, genes = 5000, 2000
    tracemalloc.start()
    StandIn(n, genes, 5, 0.01).views(n, genes, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * 4 * n * genes


# --- a file ---


@pytest.fixture
def counts():
    return scipy.sparse.random_array((30, 25), density=0.4, rng=np.random.default_rng(0), format="csr") * 20


@pytest.fixture
def h5ad(tmp_path, counts):
    """Write an .h5ad of 30 cells with 25 features, of which every fifth is a protein."""
    anndata = pytest.importorskip("anndata", reason="reading .h5ad needs anndata")

    def write(kinds=("GEX", "GEX", "ADT", "GEX", "GEX"), layer="counts", **more):
        var = pd.DataFrame(index=[f"feature{i}" for i in range(25)])
        if kinds:
            var["feature_types"] = pd.Categorical(list(kinds) * 5)
        matrix = more.get("matrix", counts)
        data = anndata.AnnData(X=scipy.sparse.csr_matrix(2 * counts), var=var, layers={layer: matrix})
        path = tmp_path / "cite.h5ad"
        data.write_h5ad(path)
        return str(path)

    return write


@pytest.mark.parametrize("form", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, lambda matrix: matrix.toarray()])
def test_genes_and_proteins_of_a_file(h5ad, counts, form):
    path = h5ad(matrix=form(counts))
    data = Real.of_file(path, "counts")
    assert (data.cells, data.genes, data.proteins) == (30, 20, 5)
    x, y, match = data.views(30, 20, seed=0)
    proteins = np.arange(25) % 5 == 2
    dense = counts.toarray()
    for found, columns in ((x.toarray(), ~proteins), (y, proteins)):
        norms = np.linalg.norm(dense[:, columns], axis=1, keepdims=True)
        np.testing.assert_allclose(found, dense[:, columns] / np.where(norms > 0, norms, 1), rtol=1e-5)
    assert scipy.sparse.issparse(x)
    assert x.dtype == y.dtype == np.float32
    assert list(match) == list(range(30))


def test_a_fraction_of_the_cells_of_a_file_keeps_their_match(h5ad, counts):
    data = Real.of_file(h5ad(), "counts")
    x, y, _ = data.views(7, 20, seed=3)
    whole_x, whole_y, _ = data.views(30, 20, seed=3)
    rows = [int(abs(whole_x.toarray() - row).sum(axis=1).argmin()) for row in x.toarray()]
    assert len(set(rows)) == len(rows) == 7
    np.testing.assert_array_equal(x.toarray(), whole_x.toarray()[rows])
    np.testing.assert_array_equal(y, whole_y[rows])


def test_no_layer_is_x(h5ad):
    path = h5ad(layer="other")
    x, _, _ = Real.of_file(path, None).views(30, 20, seed=0)
    assert x.nnz > 0


def loaded(**changed):
    config = CONFIG | {"study": "smoke", "device": "cpu", "machine": "here", "citeseq": TINY | changed}
    return citeseq.load(study.load(config), config)


@pytest.mark.parametrize(
    ("change", "layer", "message"),
    [
        ({"kinds": None}, "counts", "var has no column feature_types; its columns: none"),
        ({"kinds": ["GEX", "ATAC"] * 2 + ["GEX"]}, "counts", "has no ADT (proteins); there is GEX (15), ATAC (10)"),
        ({"kinds": ["ADT"] * 5}, "counts", "has no GEX (genes); there is ADT (25)"),
        ({"layer": "raw"}, "counts", "there is no layer 'counts'; its layers: raw; null takes X"),
    ],
)
def test_a_file_that_is_not_cite_seq_says_what_is_there(h5ad, change, layer, message):
    path = h5ad(**change)
    with pytest.raises(ConfigError) as error:
        loaded(path=path, layer=layer)
    assert str(error.value).startswith(f"citeseq.path: {path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_is_no_h5ad_is_named(tmp_path):
    pytest.importorskip("anndata", reason="reading .h5ad needs anndata")
    h5py = pytest.importorskip("h5py", reason="comes with anndata")
    text, empty = tmp_path / "text.h5ad", tmp_path / "empty.h5ad"
    text.write_text("no data")
    with h5py.File(empty, "w") as file:
        file["numbers"] = [1, 2]
    for path, message in (
        (tmp_path / "none.h5ad", "no such file; README says where the data are published"),
        (tmp_path, "no such file"),
        (text, "not an .h5ad file (HDF5); if it ends in .gz, unpack it first"),
        (empty, "it has no table var, but numbers"),
    ):
        with pytest.raises(ConfigError) as error:
            loaded(path=str(path))
        assert str(error.value).startswith(f"citeseq.path: {path}: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


# --- the experiment ---


def test_what_config_yaml_asks_for():
    config = CONFIG | {"device": "cpu", "machine": "here"}
    found = citeseq.load(study.load(config), config)
    assert (found.data.cells, found.data.genes, found.data.proteins) == (90_261, 13_953, 134)
    assert (found.n, found.p, found.epochs) == ((1805,), (13_953,), 1000)
    assert found.variants == ("primal-fused", "primal-keops")
    assert found.host_gib is None  # not that of the laptop study
    assert found.root == Path("results/here/citeseq/stand-in")
    assert "1,805 of 90,261 cells (0.02)" in citeseq.headline(found)
    cell = found.measurement("primal-fused", *found.n, *found.p)
    assert (cell.data_mode, cell.settings.n_components, cell.data) == ("stand-in", 10, found.data)


def test_config_yaml_comments_the_keys_of_the_experiment():
    block = re.search(r"^citeseq:.*\n((?: +.*\n)+)", (ROOT / "config.yaml").read_text(), re.MULTILINE)[0]
    for key in CONFIG["citeseq"]:
        if key not in ("genes", "proteins", "epochs", "cell_timeout_s"):  # said beside the key before
            assert re.search(rf"^ +{key}: .*#", block, re.MULTILINE), key


def test_another_question_has_another_key():
    cells = [loaded(**change).measurement("primal", 60, 200) for change in ({}, {"density": 0.2}, {"proteins": 9})]
    assert len({cell.key for cell in cells}) == 3
    assert cells[0].key == loaded().measurement("primal", 60, 200).key


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variants": ["dual"]}, "citeseq.variants: 'dual' takes no sparse view; allowed: primal, primal-keops"),
        ({"variants": ["duall"]}, "citeseq.variants: unknown variant 'duall'; did you mean 'dual'"),
        ({"density": 0}, "citeseq.density: 0 is not allowed; input should be greater than 0"),
        ({"cpu_fraction": 2}, "citeseq.cpu_fraction: 2 is not allowed; input should be less than or equal to 1"),
        ({"epocs": 2}, "citeseq: unknown key 'epocs'; did you mean 'epochs'"),
    ],
)
def test_keys_that_cannot_be_are_named(changed, message):
    with pytest.raises(ConfigError) as error:
        loaded(**changed)
    assert message in str(error.value)


def test_a_configuration_without_the_experiment_says_so():
    config = {key: value for key, value in CONFIG.items() if key != "citeseq"} | {"device": "cpu"}
    with pytest.raises(ConfigError, match="citeseq: the configuration has no such key"):
        citeseq.load(study.load(config), config)


def test_what_the_study_asks_beyond_its_grid_is_not_asked_here():
    more = {"variants": ["primal-fused"], "n": [100_000], "p": [100]}
    laptop = CONFIG["studies"]["laptop"] | {"further": [more], "p": [100]}
    config = CONFIG | {"device": "cpu", "study": "laptop", "studies": {"laptop": laptop}}
    config |= {"citeseq": TINY | {"genes": 100, "variants": ["primal-fused"]}}
    found = citeseq.load(study.load(config), config)
    assert found.every_n == found.n


def test_set_reaches_into_a_mapping(config_file):
    changed = configuration.read(config_file, ["citeseq.path=data/cite.h5ad", "citeseq.epochs=7"])
    assert changed["citeseq"] == CONFIG["citeseq"] | {"path": "data/cite.h5ad", "epochs": 7}
    for override in ("study.path=x", "nothing.at.all=x"):
        with pytest.raises(ConfigError, match=f"--set {override}: .* is no mapping in"):
            configuration.read(config_file, [override])


def test_a_cell_that_failed_is_in_sentence_and_figure(tmp_path):
    found = loaded()
    who = {"gpu": None, "cpu": "some CPU", "commit": None}
    failed = record("primal", 60, 200, "oom", detail="host memory\nover the limit", data_mode="stand-in", machine=who)
    rows = [citeseq._row(found, failed), citeseq.PUBLISHED]
    assert citeseq.sentence(rows[0]) == "primal (stand-in, 60 cells): oom over the limit"
    citeseq.draw(found, rows).savefig(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert ">oom<" in drawn
    assert ">68.4 min<" in drawn


def citeseq_of(project, **changed):
    """Write the keys of a tiny experiment into the project's config.yaml; the machine's folder."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    config |= {"machine": "here", "device": "cpu", "citeseq": TINY | changed}
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    return project / "results" / "here" / "citeseq"


@pytest.mark.slow
def test_everything_about_the_stand_in_says_stand_in(command, project):
    root = citeseq_of(project) / "stand-in"
    output = command("citeseq")
    told = [line for line in output.splitlines() if re.match("CITE-seq|primal.*cells|/", line)]
    assert len(told) == 4
    assert all("stand-in" in line for line in told)
    assert output.count("CITE-seq stand-in (simulated), 60 of 300 cells (0.2), 200 genes against 12 proteins") == 2
    assert re.search(r"primal \(stand-in, 60 cells\): 5 epochs in .* peak .* FOSCTTM 0\.\d+ after 6 epochs", output)

    table = pd.read_csv(root / "citeseq.csv").set_index("variant")
    assert list(table.index) == ["primal", "primal-keops", "published"]
    assert list(table["data"]) == ["stand-in", "stand-in", "real"]
    ours, published = table.loc[["primal", "primal-keops"]], table.loc["published"]
    assert (published["minutes"], published["n"], published["epochs"]) == (68.4, 90_261, 1000)
    assert (ours[["n", "all_cells", "genes", "proteins", "d", "epochs_measured"]] == [60, 300, 200, 12, 10, 5]).all(
        None
    )
    assert (ours["status"] == "ok").all()
    assert ours["final_loss"].iloc[0] == pytest.approx(ours["final_loss"].iloc[1], rel=1e-4)

    figure = (root / "citeseq.svg").read_text()
    for words in ("CITE-seq stand-in (simulated), 60 of 300 cells", "stand-in, 60 cells", "68.4 min", "FOSCTTM 0."):
        assert words in figure
    assert (root / "citeseq.png").stat().st_size > 10_000

    path = records.record_path(root, "primal", 200, 60)
    content = json.loads(path.read_text())
    assert content["data_mode"] == "stand-in"
    assert content["density"] == pytest.approx(0.1, rel=0.1)
    assert content["metrics"]["epoch"] == 6
    assert content["metrics"]["foscttm"] == pytest.approx(table.loc["primal", "foscttm"])
    assert 0.2 < content["metrics"]["foscttm"] < 0.8
    assert content["peak_host_bytes"] > 0

    before = path.stat().st_mtime_ns
    output = command("citeseq", "--set", "citeseq.variants=[primal]", "--set", "citeseq.cell_budget_s=1")
    assert path.stat().st_mtime_ns == before  # it is known
    assert "primal-keops" not in output
    assert list(pd.read_csv(root / "citeseq.csv")["variant"]) == ["primal", "published"]


@pytest.mark.slow
def test_a_file_is_measured_through_snakemake_and_extrapolation_is_said(h5ad, command, project):
    root = citeseq_of(project, path=h5ad(), cpu_fraction=1, variants=["primal"], epochs=10_000, cell_budget_s=0.01)
    said = command("citeseq", "--cores", "1", "--resources", "gpu=1", program="snakemake")
    assert "CITE-seq, cite.h5ad, all 30 cells, 20 genes against 5 proteins" in said
    assert "stand-in" not in said
    assert re.search(r"primal \(real, 30 cells\): 10,000 epochs in .* \(extrapolated from \d+ epochs\)", said)
    assert re.search(r"extrapolated from \d+ epochs", (root / "real" / "citeseq.svg").read_text())
    row = pd.read_csv(root / "real" / "citeseq.csv").iloc[0]
    assert row["data"] == "real"
    assert bool(row["extrapolated"])
    assert row["density"] == pytest.approx(0.4, rel=0.2)
    assert not (root.parent / "summary.csv").exists()  # nothing of the scaling study has run
