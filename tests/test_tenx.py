"""10x Genomics' folders and .h5 files: read with their names, one type of features, refused in one line."""

import json
import shutil

import h5py
import numpy as np
import pytest
import scipy.sparse
from refusals import refused
from tenx import GENES, PROTEINS, write_folder, write_h5, write_lines

from mmdma_core.files.io import read_view
from mmdma_core.matching.command_line import main

COUNTS = scipy.sparse.csr_array([[0, 7, 0, 1], [2, 0, 1, 0], [0, 0, 3, 5]])
CELLS = ("AAC-1", "AAG-1", "AAT-1")
IDS, TYPES = ("ENSG1", "ENSG2", "ENSG3", "CD3"), [GENES] * 3 + [PROTEINS]
OF_GENES = slice(0, 3)


@pytest.fixture(params=["folder", ".h5"])
def path(request, tmp_path):
    """Of version 3, with genes and one protein."""
    if request.param == ".h5":
        return write_h5(tmp_path / "filtered_feature_bc_matrix.h5", COUNTS, CELLS, IDS, TYPES)
    return write_folder(tmp_path / "filtered_feature_bc_matrix", COUNTS, CELLS, IDS, TYPES)


@pytest.mark.parametrize(("feature_type", "taken"), [(GENES, [0, 1, 2]), (PROTEINS, [3])])
def test_a_type_of_features(path, feature_type, taken):
    view = read_view(path, feature_type=feature_type)
    assert (view.matrix.format, view.matrix.dtype) == ("csr", np.float32)
    np.testing.assert_array_equal(view.matrix.toarray(), COUNTS.toarray()[:, taken])
    assert (view.cells, view.features) == (CELLS, tuple(IDS[k] for k in taken))
    assert (view.source, view.copied) == (None, False)


def test_several_types_are_listed_with_their_numbers(path):
    present = "must be one of 'Gene Expression' (3), 'Antibody Capture' (1)"
    refused(lambda: read_view(path), str(path), present, "none was given")
    refused(lambda: read_view(path, feature_type="Peaks"), str(path), present, "there is no 'Peaks'")
    refused(lambda: read_view(path, layer="counts"), str(path), "layer 'counts' is for .h5ad")
    refused(lambda: read_view(path, transpose=True), str(path), "transpose is for bare matrices")


@pytest.mark.parametrize("write", [write_folder, write_h5])
def test_version_2(tmp_path, write):
    counts = COUNTS[:, OF_GENES]
    path = write(tmp_path / "hg19.h5", counts, CELLS, IDS[OF_GENES], TYPES[OF_GENES], version=2)
    for feature_type in (None, GENES):
        view = read_view(path, feature_type=feature_type)
        np.testing.assert_array_equal(view.matrix.toarray(), counts.toarray())
        assert (view.cells, view.features) == (CELLS, IDS[OF_GENES])
    refused(lambda: read_view(path, feature_type=PROTEINS), "one of 'Gene Expression' (3); there is no 'Antibody")


def test_files_of_a_folder_packed_or_not_with_a_prefix_and_others_beside_them(tmp_path):
    folder = write_folder(tmp_path / "GSM1", COUNTS, CELLS, IDS, TYPES, prefix="GSM1_rna_")
    write_lines(folder / "._GSM1_rna_matrix.mtx.gz", ["of another system"])
    write_lines(folder / "summary.html", ["<html>"])
    assert read_view(folder, feature_type=GENES).cells == CELLS
    packed = folder / "GSM1_rna_barcodes.tsv.gz"
    packed.unlink()
    write_lines(packed.with_suffix(""), [f"{cell}\r" for cell in CELLS])
    assert read_view(folder, feature_type=GENES).cells == CELLS


def test_peaks_of_atac(tmp_path):
    folder = write_folder(tmp_path / "peaks", COUNTS[:, OF_GENES], CELLS, IDS[OF_GENES], TYPES[OF_GENES], version=2)
    (folder / "genes.tsv").unlink()
    write_lines(folder / "peaks.bed", ["chr1\t10\t20", "chr1\t30\t40", "chrX\t1\t2"])
    assert read_view(folder, feature_type="Peaks").features == ("chr1:10-20", "chr1:30-40", "chrX:1-2")
    write_lines(folder / "peaks.bed", ["chr1\t10\t20", "chr1\t30", "chrX\t1\t2"])
    refused(lambda: read_view(folder), "peaks.bed: line 2 must have a chromosome, a start and an end")


def test_names_of_features_are_unique(tmp_path):
    ids = ("HBB", "HBB", "HBB-1", "HBB")
    path = write_h5(tmp_path / "x.h5", COUNTS, CELLS, ids, [GENES] * 4)
    assert read_view(path).features == ("HBB", "HBB-2", "HBB-1", "HBB-3")


def test_folders_that_are_refused(tmp_path):
    folder = write_folder(tmp_path / "outs", COUNTS, CELLS, IDS, TYPES)

    def again(name, *parts):
        refused(lambda: read_view(folder, feature_type=GENES), *parts)
        shutil.rmtree(folder)
        write_folder(folder, COUNTS, CELLS, IDS, TYPES)

    (folder / "barcodes.tsv.gz").unlink()
    again("lost", str(folder), "neither .zarr nor of 10x: it has no barcodes.tsv(.gz)")
    shutil.copy(folder / "matrix.mtx.gz", folder / "other_matrix.mtx.gz")
    again("two", "must have one matrix.mtx, it has matrix.mtx.gz, other_matrix.mtx.gz")
    write_lines(folder / "barcodes.tsv.gz", CELLS[:2])
    again("short", "matrix.mtx.gz must have 4 rows", "2 columns as barcodes.tsv.gz", "its shape is (4, 3)")
    write_lines(folder / "barcodes.tsv.gz", [CELLS[0], "", CELLS[2]])
    again("gap", "barcodes.tsv.gz: line 2 has no name")
    write_lines(folder / "barcodes.tsv.gz", [CELLS[0]] * 3)
    again("twice", "cell names must differ, 'AAC-1' occurs 3 times")
    write_folder(folder, COUNTS.T, CELLS, IDS, TYPES)
    again("turned", "its shape is (3, 4): cells are in its rows, so give the .mtx file itself")
    for name in ("matrix.mtx.gz", "features.tsv.gz"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        again("cut", name, "cannot be read")
    refused(lambda: read_view(folder.parent), str(folder.parent), f"did you mean {folder}?")


def test_a_folder_with_links_that_git_annex_left(tmp_path):
    folder = write_folder(tmp_path / "outs", COUNTS, CELLS, IDS, TYPES)
    (folder / "matrix.mtx.gz").unlink()
    (folder / "matrix.mtx.gz").symlink_to("../.git/annex/objects/gone")
    refused(lambda: read_view(folder), "matrix.mtx.gz", "git annex get")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"matrix/indices": np.array([9, 0, 0, 0, 0, 0])}, ["counts of 10x", "indices"]),
        ({"matrix/indptr": np.array([0, 2, 4, 99])}, ["cannot be read as"]),
        ({"matrix/indptr": np.array([0, 2])}, ["cannot be read as"]),
        ({"matrix/shape": np.array([4])}, ["cannot be read as a .h5 file of 10x"]),
        ({"matrix/shape": None}, ["cannot be read as a .h5 file of 10x", "shape"]),
        ({"matrix/barcodes": np.array(["a"], "S")}, ["it has 1 barcodes for a matrix with 3"]),
        ({"matrix/features/id": np.array(["a"], "S")}, ["it has 1 features for a matrix with 4"]),
        ({"matrix/features/feature_type": np.array(["a"], "S")}, ["it has 1 feature types for 4 features"]),
        ({"matrix/features": None}, ["cannot be read as a .h5 file of 10x"]),
        ({"matrix/data": np.array(["a"] * 6, "S")}, ["must hold real numbers, it holds |S1"]),
        ({"matrix": None}, ["it must have a group 'matrix'", "it has nothing"]),
        ({"matrix": None, "barcode_idx": 1}, ["it must have a group 'matrix'", "it has 'barcode_idx'"]),
        ({"obs": 1, "var": 1}, ["it is a file of anndata: name it .h5ad"]),
        ({"mod": 1}, ["it is a file of mudata: name it .h5mu"]),
        ({"matrix": None, "hg19/genes": 1, "mm10/genes": 1}, ["one of a genome", "it has 'hg19', 'mm10'"]),
    ],
)
def test_h5_files_that_are_refused(tmp_path, change, parts):
    path = write_h5(tmp_path / "x.h5", COUNTS, CELLS, IDS, [GENES] * 4)
    with h5py.File(path, "r+") as file:
        for name, value in change.items():
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value
    refused(lambda: read_view(path), str(path), *parts)


def test_h5_files_that_are_damaged(tmp_path):
    path = write_h5(tmp_path / "x.h5", COUNTS, CELLS, IDS, [GENES] * 4)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(lambda: read_view(path), str(path), "cannot be read as a .h5 file of 10x")
    path.write_bytes(b"1,2\n3,4\n")
    refused(lambda: read_view(path), str(path), "cannot be read as a .h5 file of 10x")


def test_a_real_size(tmp_path):
    """4,000 cells and 7,000 features, a tenth of which are peaks."""
    rng = np.random.default_rng(0)
    counts = scipy.sparse.random_array((4000, 7000), density=0.02, rng=rng, format="csr")
    counts.data = np.ceil(9 * counts.data)
    cells, ids = [f"cell{i}-1" for i in range(4000)], [f"ENSG{i:011}" for i in range(7000)]
    types = [GENES] * 6300 + ["Peaks"] * 700
    paths = [write_folder(tmp_path / "x", counts, cells, ids, types), tmp_path / "x.h5"]
    write_h5(paths[1], counts, cells, ids, types)
    for path in paths:
        view = read_view(path, feature_type="Peaks")
        assert (view.cells, view.features) == (tuple(cells), tuple(ids[6300:]))
        assert (view.matrix != counts[:, 6300:].astype(np.float32)).nnz == 0


@pytest.mark.slow
def test_both_views_from_one_folder_or_file(tmp_path, path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    many = scipy.sparse.vstack([COUNTS] * 5, format="csr")
    cells = [f"c{i}" for i in range(15)]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (write_h5 if path.suffix == ".h5" else write_folder)(path, many, cells, IDS, TYPES)
    quick = ["--n-epochs", "5", "--n-starts", "1", "--n-components", "1", "--loss-every", "5", "--random-state", "0"]
    types = ["--x-feature-type", GENES, "--y-feature-type", PROTEINS]
    with caplog.at_level("INFO"):
        assert main(["fit", "--x", str(path), *types, *quick, "--quiet", "--out", "out"]) == 0
    assert "15 of 15 cells of x are in y by name" in caplog.text
    assert np.load("out/embedding_y.npy").shape == (15, 1)
    assert "foscttm" in json.loads((tmp_path / "out/metrics.json").read_text())["values"]
    transform = ["transform", "--model", "out/model.npz", "--cells", str(path), "--out", "new.npy"]
    assert main([*transform, "--feature-type", GENES]) == 0
    np.testing.assert_allclose(np.load("new.npy"), np.load("out/embedding_x.npy"), atol=1e-4)
    assert main(["evaluate", "--x", str(path), *types[:3], GENES]) == 2
    assert "or --x-feature-type and --y-feature-type" in capsys.readouterr().err
