"""A share of the cells of a file: its rows and no others, with the names of all."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse

from mmdma_core.files.io import read_view

N, P = 11, 4
X = np.random.default_rng(0).normal(size=(N, P)).astype(np.float32)
CELLS = tuple(f"c{k}" for k in range(N))


def write(path, form):
    matrix = scipy.sparse.csr_array(X * (X > 0)) if form == "sparse" else X
    if path.suffix == ".npy":
        np.save(path, matrix)
    elif path.suffix == ".mtx":
        scipy.io.mmwrite(path, scipy.sparse.coo_array(matrix))
    else:
        held = anndata.AnnData(matrix, obs=pd.DataFrame(index=list(CELLS)))
        held.layers["half"] = matrix / 2
        held.obsm["X_pca"] = X[:, :2]
        held.write_h5ad(path)


@pytest.mark.parametrize(
    ("name", "form", "more"),
    [
        ("x.npy", "dense", {}),
        ("x.mtx", "sparse", {}),
        ("x.h5ad", "dense", {}),
        ("x.h5ad", "sparse", {}),
        ("x.h5ad", "dense", {"layer": "half"}),
        ("x.h5ad", "dense", {"obsm": "X_pca"}),
    ],
)
def test_shares_put_together_are_the_whole(tmp_path, name, form, more):
    write(tmp_path / name, form)
    whole = read_view(tmp_path / name, **more)
    shares = [read_view(tmp_path / name, **more, share=(k, 3)) for k in range(3)]
    rows = [share.matrix.toarray() if scipy.sparse.issparse(share.matrix) else share.matrix for share in shares]
    right = whole.matrix.toarray() if scipy.sparse.issparse(whole.matrix) else whole.matrix
    assert np.array_equal(np.concatenate(rows), right)
    assert [(share.n, share.first, len(row)) for share, row in zip(shares, rows, strict=True)] == [
        (N, 0, 3),
        (N, 3, 4),
        (N, 7, 4),
    ]
    assert all((share.cells, share.features) == (whole.cells, whole.features) for share in shares)


def test_of_h5ad_no_other_rows_of_x_are_read(tmp_path):
    write(tmp_path / "x.h5ad", "dense")
    assert read_view(tmp_path / "x.h5ad", share=(1, 3)).source.isbacked


def test_an_error_names_the_row_of_the_file(tmp_path):
    bad = X.copy()
    bad[8, 2] = np.inf
    np.save(tmp_path / "x.npy", bad)
    with pytest.raises(ValueError, match="row 9, column 3 holds inf"):
        read_view(tmp_path / "x.npy", share=(2, 3))
