"""The command line on small files: what it writes, and the one line that each bad input gets."""

import json
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from embeddings import PLAIN_OPTIONS

from mmdma_core import MMDMA, simulate, simulate_counts
from mmdma_core.files.atomic import Unwritten
from mmdma_core.matching import commands, match_ranks
from mmdma_core.matching.command_line import main

pytestmark = pytest.mark.slow

N = 40
X, Y, MATCH = simulate("branch", N, 12, p_y=9)
QUICK = ["--n-epochs", "20", "--n-starts", "2", "--loss-every", "10", "--random-state", "0", "--n-components", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the views in several formats, where the commands run."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X.numpy())
    np.save("y.npy", Y.numpy())
    np.savetxt("match.txt", MATCH, fmt="%d")
    np.savetxt("labels.txt", np.where(np.arange(N) % 2, "a", "b"), fmt="%s")
    scipy.sparse.save_npz("x.npz", scipy.sparse.csr_array(X.numpy() * (abs(X.numpy()) > 1)))
    views = []
    for name, view, order in (("x", X, MATCH), ("y", Y, np.arange(N))):
        obs = pd.DataFrame({"kind": [f"k{i % 3}" for i in range(N)]}, index=[f"cell{i}" for i in order])
        data = anndata.AnnData(view.numpy(), obs=obs, layers={"half": view.numpy() / 2})
        data.obsm["X_pca"] = view.numpy()[:, :4]
        data.write_h5ad(f"{name}.h5ad")
        views.append(data)
    mudata.MuData({"rna": views[0], "prot": views[1]}).write("both.h5mu")
    return tmp_path


def run(*arguments, status=0):
    assert main([str(argument) for argument in arguments]) == status


def fit(*arguments, status=0):
    """As the paper has it: what is written and said of it costs no more than that."""
    run("fit", *QUICK, *PLAIN_OPTIONS, "--quiet", "--out", "out", *arguments, status=status)


def test_fit_writes_embeddings_model_history_metrics_and_pictures(folder):
    """With the parameters' defaults."""
    truth = "--match", "match.txt", "--labels", "labels.txt"
    run("fit", *QUICK, "--quiet", "--out", "out", "--x", "x.npy", "--y", "y.npy", *truth)
    out = folder / "out"
    names = "embedding.png embedding_x.npy embedding_y.npy loss.csv loss.png matches.csv matches_y.csv metrics.json"
    names = [*names.split(), "model.npz", "overlap.csv", "starts.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    model = MMDMA(n_epochs=20, n_starts=2, loss_every=10, random_state=0, n_components=2).fit(X, Y)
    np.testing.assert_array_equal(np.load(out / "embedding_x.npy"), model.embedding_x_)
    assert pd.read_csv(out / "loss.csv")["epoch"].tolist() == [0, 10, 20]
    found = json.loads((out / "metrics.json").read_text())
    expected = {"foscttm", "top1_count", "top5_count", "top5_percent", "label_transfer_accuracy", "label_silhouette"}
    assert set(found["values"]) == expected
    assert "fewer" in found["left_out"]["top1_percent"] or "less" in found["left_out"]["top1_percent"]
    assert found["fit"]["parameters"]["variant"] == model.variant_
    overlap = pd.read_csv(out / "overlap.csv")
    assert (len(overlap), overlap["overlap"].iloc[-1]) == (N, 1.0)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_fit_writes_into_copies_of_anndata_files_and_matches_by_name(folder, caplog):
    before = (folder / "x.h5ad").read_bytes()
    with caplog.at_level("INFO"):
        fit("--x", "x.h5ad", "--y", "y.h5ad", "--obsm", "X_pca", "--y-layer", "half", "--labels", "kind")
    assert "40 of 40 cells of x are in y by name" in caplog.text
    assert (folder / "x.h5ad").read_bytes() == before
    x, y = (anndata.read_h5ad(folder / "out" / name) for name in ("x.h5ad", "y.h5ad"))
    assert x.obsm["X_mmdma"].shape == (N, 2)
    assert x.uns["mmdma"]["params"]["n_epochs"] == 20
    assert "half" in y.layers
    model = MMDMA.load(folder / "out" / "model.npz")
    assert (model.n_features_in_, model.n_features_y_) == (4, 9)
    assert "foscttm" in json.loads((folder / "out" / "metrics.json").read_text())["values"]


def test_what_was_read_is_said_before_the_training(folder, caplog):
    pd.DataFrame(Y.numpy().T, [f"p{i}" for i in range(9)], [f"cell{i}" for i in range(N)]).to_csv("y.csv")
    with caplog.at_level("INFO"):
        fit("--x", "x.npz", "--y", "y.csv", "--y-transpose")
        run("transform", "--model", "out/model.npz", "--cells", "x.h5ad", "--out", "new.npy")
        run("evaluate", "--x", "out/embedding_x.npy", "--y", "out/embedding_y.npy", "--same-cells")
    said = [line for line in caplog.messages if " features, " in line]
    assert said == [
        "x: 40 cells x 12 features, sparse, no cell names, no feature names",
        "y: 40 cells x 9 features, dense, first cell 'cell0', first feature 'p0'",
        f"cells: 40 cells x 12 features, dense, first cell 'cell{MATCH[0]}', first feature '0'",
        "x: 40 cells x 2 features, dense, no cell names, no feature names",
        "y: 40 cells x 2 features, dense, no cell names, no feature names",
    ]
    assert caplog.messages.index(said[1]) == 1


def test_no_match_is_made_of_default_names(folder, caplog):
    for name, view in (("x", X), ("y", Y[:30])):
        anndata.AnnData(view.numpy()).write_h5ad(f"{name}.h5ad")
    with caplog.at_level("INFO"):
        fit("--x", "x.h5ad", "--y", "y.h5ad")
    assert "match: none is made of names, the cells of x are only numbered ('0', '1', ...): --same-cells" in caplog.text
    assert json.loads((folder / "out/metrics.json").read_text())["left_out"]["foscttm"] == "no match given"
    fit("--x", "x.h5ad", "--y", "y.npy", "--same-cells", "--overwrite")
    assert "foscttm" in json.loads((folder / "out/metrics.json").read_text())["values"]


def test_labels_with_gaps_are_counted(folder, caplog):
    lines = [f"cell{i},{'' if i < 3 else 'ab'[i % 2]}" for i in range(N)]
    (folder / "labels.csv").write_text("\n".join(["barcode,type", *lines]))
    with caplog.at_level("INFO"):
        fit("--x", "x.h5ad", "--y", "y.h5ad", "--labels", "labels.csv")
    assert caplog.text.count("labels 'labels.csv': 3 of 40 cells have none") == 2
    found = json.loads((folder / "out/metrics.json").read_text())
    assert "3 of 40 cells of x and 3 of 40 cells of y have no label: metrics of labels leave them out" in found["notes"]
    assert set(found["values"]) >= {"label_transfer_accuracy", "label_silhouette"}
    assert (folder / "out/embedding.png").exists()


def test_overwriting_takes_the_input_as_it_is_now(folder):
    fit("--x", "x.h5ad", "--y", "y.h5ad")
    changed = anndata.read_h5ad("x.h5ad")[:30]
    changed.write_h5ad("x.h5ad")
    fit("--x", "x.h5ad", "--y", "y.h5ad", "--overwrite")
    assert anndata.read_h5ad("out/x.h5ad").obsm["X_mmdma"].shape == (30, 2)


def test_two_matrices_of_one_file_get_a_copy_each(folder):
    fit("--x", "x.h5ad", "--x-obsm", "X_pca", "--y", "x.h5ad")
    assert "X_mmdma" in anndata.read_h5ad("out/x_x.h5ad").obsm
    assert "X_mmdma" in anndata.read_h5ad("out/y_x.h5ad").obsm


def test_an_input_is_never_replaced(folder, capsys):
    before = (folder / "x.h5ad").read_bytes()
    run("fit", *QUICK, "--quiet", "--out", ".", "--overwrite", "--x", "x.h5ad", "--y", "y.npy", status=2)
    assert "x.h5ad is an input, it is kept: choose another --out" in capsys.readouterr().err
    assert (folder / "x.h5ad").read_bytes() == before


def test_transform_refuses_features_in_another_order(folder, capsys):
    fit("--x", "x.h5ad", "--y", "y.npy")
    data = anndata.read_h5ad("x.h5ad")
    data[:, ::-1].copy().write_h5ad("reversed.h5ad")
    run("transform", "--model", "out/model.npz", "--cells", "reversed.h5ad", "--out", "new.h5ad", status=2)
    said = "reversed.h5ad: the model was fitted with other features, or in another order: feature 0 is '11', was '0'"
    assert said in capsys.readouterr().err


def test_fit_on_two_modalities_of_one_file(folder):
    fit("--x", "both.h5mu", "--x-modality", "rna", "--y-modality", "prot")
    both = mudata.read_h5mu(folder / "out" / "both.h5mu")
    assert both["rna"].obsm["X_mmdma"].shape == both["prot"].obsm["X_mmdma"].shape == (N, 2)


def test_fit_on_sparse_and_transposed_and_kernels(folder):
    np.save("xt.npy", X.numpy().T)
    fit("--x", "xt.npy", "--x-transpose", "--y", "y.npy")
    plain = np.load("out/embedding_x.npy")
    fit("--x", "x.npy", "--y", "y.npy", "--overwrite")
    np.testing.assert_allclose(np.load("out/embedding_x.npy"), plain, atol=1e-5)
    fit("--x", "x.npz", "--y", "y.npy", "--overwrite")
    np.save("k.npy", X.numpy() @ X.numpy().T)
    np.save("l.npy", Y.numpy() @ Y.numpy().T)
    fit("--x", "k.npy", "--y", "l.npy", "--kernel", "--overwrite")
    assert MMDMA.load("out/model.npz").weights_x_.shape == (N, 2)


def test_transform_evaluate_simulate(folder, capsys):
    run("simulate", "branch", "--n", "30", "--p", "8", "--p-y", "6", "--out", "sim")
    np.testing.assert_array_equal(np.load("sim/x.npy"), simulate("branch", 30, 8, p_y=6).x)
    fit("--simulate", "branch", "--n", "30", "--p", "8", "--p-y", "6")
    run("transform", "--model", "out/model.npz", "--cells", "sim/y.npy", "--view", "y", "--out", "new.npy")
    np.testing.assert_allclose(np.load("new.npy"), np.load("out/embedding_y.npy"), atol=1e-5)
    capsys.readouterr()
    truth = ["--match", "sim/match.npy"]
    run("evaluate", "--x", "out/embedding_x.npy", "--y", "out/embedding_y.npy", *truth, "--out", "found.json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["values"] == json.loads((folder / "out/metrics.json").read_text())["values"]
    assert json.loads((folder / "found.json").read_text()) == printed
    assert pd.read_csv("found_overlap.csv").equals(pd.read_csv("out/overlap.csv"))


def test_metrics_of_many_cells_are_of_a_sample_unless_asked_otherwise(folder, monkeypatch, caplog):
    monkeypatch.setattr(match_ranks, "EXACT_UP_TO", N - 1)
    monkeypatch.setattr(match_ranks, "SAMPLED_CELLS", 10)
    views = ["--x", "x.npy", "--y", "y.npy", "--match", "match.txt", "--labels", "labels.txt"]
    with caplog.at_level("INFO"):
        fit(*views)
    found = json.loads((folder / "out/metrics.json").read_text())
    low, high = found["intervals"]["foscttm"]
    assert low < found["values"]["foscttm"] < high
    assert found["sampled"]["foscttm"] == found["sampled"]["label_transfer_accuracy"] == [10, 10]
    value = f"foscttm: {found['values']['foscttm']:.4g}"
    assert f"{value} (95 %: {low:.4g} to {high:.4g}, from 10 cells of each view)" in caplog.text
    of_x, of_y = found["sampled"]["label_silhouette"]
    assert (of_x == of_y) or f"from {of_x} cells of x and {of_y} of y)" in caplog.text
    overlap = pd.read_csv("out/overlap.csv")
    assert overlap["overlap"].is_monotonic_increasing
    assert (len(overlap) <= 11, overlap["k"].iloc[-1]) == (True, N)
    assert ((overlap["low"] <= overlap["overlap"]) & (overlap["overlap"] <= overlap["high"])).all()
    embedded = ["--x", "out/embedding_x.npy", "--y", "out/embedding_y.npy", *views[4:]]
    run("evaluate", *embedded, "--out", "again.json")
    assert json.loads((folder / "again.json").read_text())["intervals"] == found["intervals"]
    run("evaluate", *embedded, "--out", "all.json", "--exact-metrics")
    exact = json.loads((folder / "all.json").read_text())
    assert (exact["sampled"], exact["intervals"]) == ({}, {})
    assert len(pd.read_csv("all_overlap.csv")) == N
    caplog.clear()
    with caplog.at_level("INFO"):
        fit(*views, "--exact-metrics", "--overwrite")
    assert json.loads((folder / "out/metrics.json").read_text())["values"] == exact["values"]
    assert "95 %" not in caplog.text


def test_what_is_there_is_kept_unless_overwritten(folder, capsys):
    fit("--x", "x.npy", "--y", "y.npy")
    before = (folder / "out/model.npz").read_bytes()
    fit("--x", "x.npy", "--y", "y.npy", "--n-epochs", "10", status=2)
    assert "error: out holds results already: kept; --overwrite replaces them\n" in capsys.readouterr().err
    assert (folder / "out/model.npz").read_bytes() == before


def test_ctrl_c_keeps_the_best_and_says_so_in_the_exit_status(folder, monkeypatch):
    from mmdma_core.matching import starts

    def interrupt(*arguments, **options):
        def stop(run, terms):
            raise KeyboardInterrupt

        return train(*arguments, **options | {"callbacks": [stop]})

    train = starts.train
    monkeypatch.setattr(starts, "train", interrupt)
    fit("--x", "x.npy", "--y", "y.npy", status=130)
    assert pd.read_csv("out/starts.csv")["stopped"].tolist() == ["interrupted"]
    assert (folder / "out/embedding_x.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--x", "none.npy", "--y", "y.npy"], "none.npy"),
        (["--x", "x.npy"], "x.npy: x and y are the same"),
        ([], "give --x and --y, or --simulate"),
        (["--simulate", "branch", "--x", "x.npy"], "--simulate makes both views"),
        (["--x", "x.h5ad", "--y", "y.h5ad", "--layer", "counts"], "x.h5ad: there is no layer 'counts'; layer: 'half'"),
        (["--x", "x.h5ad", "--y", "y.h5ad", "--obsm", "X_umap"], "there is no obsm 'X_umap'; obsm: 'X_pca'"),
        (["--x", "both.h5mu"], "modality must be one of 'prot', 'rna'; none was given"),
        (["--x", "x.npy", "--y", "y.npy", "--transpose", "--match", "match.txt"], "has 40 entries, x has 12 cells"),
        (["--x", "x.npy", "--x-transpose", "--y", "y.npy", "--same-cells"], "x has 12 cells and y has 40"),
        (["--x", "x.npy", "--y", "y.npy", "--labels", "match.txt", "--x-labels", "short.txt"], "3 labels for 40 cells"),
        (["--x", "x.npy", "--y", "y.npy", "--n-neighbors", "-1"], "--n-neighbors must be at least 1, got -1"),
        (["--x", "x.npy", "--y", "y.npy", "--match", "double.txt"], "match vector must be one to one, row 1"),
        (["--x", "x.npy", "--y", "y.npy", "--sigma", "-2"], "sigma must be a positive number, got -2"),
        (["--x", "x.npy", "--y", "y.npy", "--variant", "primel"], "did you mean 'primal'"),
        (["--x", "x.npy", "--y", "y.npy", "--kernel"], "x: a kernel must be a dense square matrix, got shape (40, 12)"),
    ],
)
def test_bad_input_gets_one_line(folder, capsys, arguments, message):
    (folder / "short.txt").write_text("a\nb\nc\n")
    (folder / "double.txt").write_text("1\n" * N)
    fit(*arguments, status=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_model_that_is_none_gets_one_line(folder, capsys):
    run("transform", "--model", "x.npz", "--cells", "x.npy", "--out", "new.npy", status=2)
    assert "x.npz is no model of this program" in capsys.readouterr().err
    run("transform", "--model", "none.npz", "--cells", "x.npy", "--out", "new.npy", status=2)
    assert "error: none.npz: No such file" in capsys.readouterr().err


AXES = [
    "--quiet",
    "--out",
    "out",
    "--starts",
    "symmetries",
    "--n-starts",
    "0",
    "--n-epochs",
    "0",
    "--random-state",
    "0",
]


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """Counts of 300 cells with names, of which the types are known in x alone."""
    monkeypatch.chdir(tmp_path)
    x, y, types, _ = simulate_counts(300, seed=4)
    for name, view in (("x", x), ("y", y)):
        pd.DataFrame(view, [f"{name}{i}" for i in range(300)]).add_prefix("f").to_csv(f"{name}.csv")
    Path("types.txt").write_text("\n".join(types))
    return types


def test_fit_of_raw_counts_says_which_cell_is_which_and_carries_labels_and_features_over(counted, caplog):
    caplog.set_level("INFO")
    run("fit", *AXES, "--x", "x.csv", "--y", "y.csv", "--x-labels", "types.txt", "--features", "x", "--matches", "2")
    assert "labels of x are carried over to y: labels_y.csv" in caplog.messages
    model = MMDMA.load("out/model.npz")
    for view, other, file in (("x", "y", "matches.csv"), ("y", "x", "matches_y.csv")):
        table, expected = pd.read_csv(f"out/{file}"), model.matches(view, k=2)
        assert table["cell"].tolist() == [f"{view}{i}" for i in range(300) for _ in range(2)]
        assert table["match"].tolist() == [f"{other}{i}" for i in expected["match"]]
        pd.testing.assert_frame_equal(table.iloc[:, 2:], expected.iloc[:, 2:], check_dtype=False, rtol=1e-5)
    labels = pd.read_csv("out/labels_y.csv")
    assert labels["cell"].tolist() == [f"y{i}" for i in range(300)]
    assert (labels["label"] == counted).mean() > 0.95
    assert np.load("out/features_x.npy").shape == (300, 30)
    assert not {"labels_x.csv", "features_y.npy"} & {path.name for path in Path("out").iterdir()}


def test_what_is_carried_over_is_gone_when_it_is_not_asked_for_again(counted):
    arguments = *AXES, "--x", "x.csv", "--y", "y.csv"
    run("fit", *arguments, "--y-labels", "types.txt", "--features", "both")
    answers = {"matches.csv", "matches_y.csv", "labels_x.csv", "features_x.npy", "features_y.npy"}
    assert answers < {path.name for path in Path("out").iterdir()}
    run("fit", *arguments, "--labels", "types.txt", "--matches", "0", "--overwrite")
    assert not answers & {path.name for path in Path("out").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--matches", "31"], "--matches must be from 0 to 30, got 31"),
        (["--x-labels", "none.txt"], "labels 'none.txt': no cell has a label"),
        (["--preprocess", "counts"], "X must hold counts, whole numbers of at least 0: row 1, column 2 holds -2"),
    ],
)
def test_answers_that_cannot_be_are_refused(counted, capsys, arguments, said):
    Path("none.txt").write_text("NA\n" * 300)
    table = pd.read_csv("x.csv", index_col=0)
    table.iloc[0, 1] = -2
    table.to_csv("negative.csv")
    run("fit", *AXES, "--x", "negative.csv", "--y", "y.csv", *arguments, status=2)
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {said}"


def test_room_for_features_that_are_carried_over_is_asked_for_before_the_fit(counted, monkeypatch, capsys):
    asked = {}

    def full(sizes):
        asked.update(sizes)
        if any(path.name == "model.npz" and size for path, size in sizes.items()):
            raise Unwritten(28, "No space left on device", "out")

    monkeypatch.setattr(commands, "check_writable", full)
    run("fit", *AXES, "--x", "x.csv", "--y", "y.csv", "--features", "y", status=1)
    assert asked[Path("out/features_y.npy")] == 4 * 300 * 600
    assert asked[Path("out/features_x.npy")] == 0
