"""Files of MuData: the obs that all modalities share says which cells are the same, and has labels for all."""

import json
import warnings
from pathlib import Path

import anndata
import mudata
import numpy as np
import pytest

from mmdma_core.files import io
from mmdma_core.matching.command_line import main

N = 30
FIT = "fit --variant primal --n-epochs 2 --n-starts 1 --random-state 0 --device cpu --quiet --overwrite --out out"
FIT += " --x both.h5mu --x-modality rna --y-modality prot"
ALL = [f"CELL{k}-1" for k in range(N)]
OF = {"rna": ALL[:25], "prot": ALL[:4:-1]}  # rna lacks the last, prot the first, and has them backwards
TYPES = dict(zip(ALL, np.array(["a", "b", "c"])[np.arange(N) % 3], strict=True))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes both.h5mu after a change of the object."""
    monkeypatch.chdir(tmp_path)

    def write(change=lambda data: None, names=OF, **options):
        views = {}
        for k, (name, cells) in enumerate(names.items()):
            x = np.random.default_rng(k).normal(size=(len(cells), 5 + k)).astype(np.float32)
            views[name] = anndata.AnnData(x)
            views[name].obs_names = cells
            views[name].var_names = [f"{name}{j}" for j in range(5 + k)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = mudata.MuData(views, **options)
            change(data)
            data.write("both.h5mu")

    return write


def shared(data, name="cell_type", gaps=0):
    data.obs[name] = [None if k < gaps else TYPES[cell] for k, cell in enumerate(data.obs_names)]


def views():
    return [io.read_view("both.h5mu", modality=name) for name in ("rna", "prot")]


def labels_of(source):
    return [io.read_labels(source, view.matrix.shape[0], view).tolist() for view in views()]


RIGHT = [[TYPES[cell] for cell in OF[name]] for name in ("rna", "prot")]


@pytest.mark.parametrize("name", ["cell_type", "of:both"])
def test_labels_of_the_shared_obs(make, name):
    make(lambda data: shared(data, name))
    assert labels_of(name) == RIGHT


def test_labels_of_a_modality_for_the_other_by_its_prefix(make):
    make(lambda data: data["rna"].obs.insert(0, "cell_type", [TYPES[cell] for cell in OF["rna"]]))
    x, y = labels_of("rna:cell_type")
    assert x == RIGHT[0]
    assert y == [TYPES[cell] if cell in OF["rna"] else None for cell in OF["prot"]]
    make(lambda data: shared(data, "prot:cell_type"))
    y = io.read_labels("cell_type", len(OF["prot"]), views()[1])
    assert y.tolist() == RIGHT[1]


def test_the_modalitys_own_column_comes_first(make):
    def both(data):
        shared(data)
        data["rna"].obs["cell_type"] = "mine"

    make(both)
    assert labels_of("cell_type") == [["mine"] * 25, RIGHT[1]]


def test_whole_numbers_stay_so_beside_gaps(make):
    make(lambda data: data.obs.insert(0, "batch", np.arange(N)))
    for found, cells in zip(labels_of("batch"), OF.values(), strict=True):
        assert {type(label) for label in found} == {int}
        assert len(found) == len(cells)


def test_an_unknown_column_is_refused_with_those_that_are_there(make):
    make(shared)
    with pytest.raises(ValueError, match=r"neither a file nor a column of obs .*'cell_type'"):
        labels_of("celltype")


def test_cells_are_the_same_that_are_in_one_row_of_the_shared_obs(make):
    make()
    match = io.align_by_name(*views())
    right = [OF["prot"].index(cell) if cell in OF["prot"] else -1 for cell in OF["rna"]]
    assert match.tolist() == right
    make(axis=1)  # cells of the same name are others there
    assert io.align_by_name(*views()) is None
    assert io.compare_names(*views()) == "0 of 25 cells of x share a row of MuData's obs with a cell of y"
    few = {"rna": ALL, "prot": [*ALL[:1], *(f"OTHER{k}" for k in range(29))]}
    make(names=few)  # it is said there, so it is no chance
    assert np.flatnonzero(io.align_by_name(*views()) >= 0).tolist() == [0]


def test_a_fit_takes_both(make):
    make(shared)
    assert main([*FIT.split(), "--labels", "cell_type"]) == 0
    found = json.loads(Path("out/metrics.json").read_text())
    assert {"foscttm", "label_transfer_accuracy"} <= set(found["values"])
    assert "5 of 25 cells of x and 5 of 25 cells of y have no match" in found["notes"][0]
