"""Whatever holds a matrix, each way in takes the same one of it, and leaves it as it is."""

import copy
import dataclasses
import itertools
import json
import warnings

import anndata
import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import scipy.sparse
import torch
from embeddings import PLAIN

from benchmarks.config import read
from benchmarks.study import load
from mmdma_core import MMDMA, Kernel, Settings, metrics, simulate, start, variant
from mmdma_core.files import io

RNG = np.random.default_rng(0)
X = np.where(RNG.random((20, 6)) < 0.5, RNG.integers(1, 9, (20, 6)), 0).astype(np.float32)  # exact in half precision
X[:, 0] += 1  # no empty cell
Y = RNG.normal(size=(18, 5)).astype(np.float32)
FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]
LAYOUTS = {"coo": None, "csr": None, "csc": None, "bsr": (2, 3), "bsc": (2, 3)}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")


def model(**more):
    given = {"n_components": 2, "n_epochs": 5, "n_starts": 1, "random_state": 0, "device": "cpu"}
    return MMDMA("primal", **PLAIN | given | {"l2_normalize": True} | more)


def scipy_of(form, kind="array"):
    """X in a format of SciPy; where it can be with each entry in two parts, out of order and with a zero between."""
    make = getattr(scipy.sparse, f"{form}_{kind}")
    if form in ("csr", "csc"):
        whole = make(X)
        data, indices = [], []
        for begin, end in itertools.pairwise(whole.indptr):
            data += [*whole.data[begin:end][::-1] - 1, *np.ones(end - begin), 0]
            indices += [*whole.indices[begin:end][::-1], *whole.indices[begin:end], 2]
        ends = 2 * whole.indptr + np.arange(len(whole.indptr))
        return make((np.array(data, np.float32), np.array(indices), ends), shape=X.shape)
    if form == "coo":
        rows, columns = np.nonzero(X)
        parts = np.concatenate([X[rows, columns] - 1, np.ones(len(rows), np.float32)])
        return make((parts, (np.tile(rows, 2), np.tile(columns, 2))), shape=X.shape)
    if form == "bsr":
        whole = scipy.sparse.bsr_array(X, blocksize=(2, 3))
        data, indices = (np.repeat(part, 2, axis=0) for part in (whole.data, whole.indices))
        data[::2] -= 1
        data[1::2] = 1
        return make((data, indices, 2 * whole.indptr), shape=X.shape)
    return make(X)


def tensor_of(layout, dtype=torch.float32):
    """X as a sparse tensor; in COO and CSR with each entry in two parts."""
    if layout == "coo":
        rows, columns = np.tile(np.nonzero(X), 2)
        values = torch.from_numpy(np.concatenate([X[X != 0] - 1, np.ones((X != 0).sum(), np.float32)])).to(dtype)
        return torch.sparse_coo_tensor(np.stack([rows, columns]), values, X.shape)
    if layout == "csr":
        twice = scipy_of("csr")
        parts = (torch.from_numpy(part) for part in (twice.indptr.astype(int), twice.indices.astype(int)))
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(twice.data).to(dtype), X.shape, check_invariants=False)
    layout, size = getattr(torch, f"sparse_{layout}"), LAYOUTS[layout]
    return torch.from_numpy(X).to(dtype).to_sparse(layout=layout, **({"blocksize": size} if size else {}))


def parts_of(given):
    """What the matrix is made of, to see whether that has changed."""
    if isinstance(given, torch.Tensor):
        return [given.clone(), given.dtype, given.layout]
    if isinstance(given, np.ndarray):
        return [given.copy()]
    names = ("data", "indices", "indptr", "coords", "rows")
    return [copy.deepcopy(getattr(given, name)) for name in names if hasattr(given, name)]


def assert_same_parts(one, other):
    for left, right in zip(one, other, strict=True):
        if isinstance(left, torch.Tensor):
            assert torch.equal(left.to_dense(), right.to_dense())
        else:
            assert str(left) == str(right)


GIVEN = {f"{form}_{kind}": (scipy_of, form, kind) for form in FORMATS for kind in ("array", "matrix")}
GIVEN |= {f"tensor {layout}": (tensor_of, layout) for layout in LAYOUTS}
GIVEN |= {f"half {layout}": (tensor_of, layout, torch.bfloat16) for layout in LAYOUTS}
GIVEN |= {
    f"dense {dtype}": (lambda dtype: torch.from_numpy(X).to(dtype), dtype) for dtype in (torch.bfloat16, torch.half)
}
GIVEN["dense >f4"] = (lambda: X.astype(">f4"),)
GIVEN["dense backwards"] = (lambda: X[::-1].copy()[::-1],)
GIVEN["dense half"] = (lambda: X.astype(np.float16),)
GIVEN["with a gradient"] = (lambda: torch.from_numpy(X).requires_grad_(),)


@pytest.mark.parametrize("name", GIVEN)
def test_each_way_in_takes_the_same_matrix(name):
    make, *arguments = GIVEN[name]
    given = make(*arguments)
    before, right = parts_of(given), model().fit(X, Y)
    found = model().fit(given, Y)
    np.testing.assert_allclose(found.embedding_x_, right.embedding_x_, rtol=1e-5)
    np.testing.assert_allclose(found.transform(given), right.transform(X), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = [start("primal", view, Y) for view in (X, given)]
        assert runs[1].loss().total == pytest.approx(runs[0].loss().total, rel=1e-5)
    assert_same_parts(before, parts_of(given))


@pytest.mark.parametrize("name", [name for name in GIVEN if not name.startswith(("dok", "lil"))])
def test_files_hold_the_same_matrix(tmp_path, name):
    make, *arguments = GIVEN[name]
    given = make(*arguments)
    if isinstance(given, torch.Tensor):
        torch.save(given, tmp_path / "x.pt")
        paths = [tmp_path / "x.pt"]
    elif isinstance(given, np.ndarray):
        np.save(tmp_path / "x.npy", given)
        paths = [tmp_path / "x.npy"]
    else:
        scipy.sparse.save_npz(tmp_path / "x.npz", given)
        paths = [tmp_path / "x.npz"]
        if given.format in ("csr", "csc"):
            anndata.AnnData(given).write_h5ad(tmp_path / "x.h5ad")
            paths.append(tmp_path / "x.h5ad")
    for path in paths:
        matrix = io.read_view(path).matrix
        if scipy.sparse.issparse(matrix):
            assert matrix.has_canonical_format
        np.testing.assert_array_equal(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix, X)


def test_a_flag_that_is_not_true_is_not_believed():
    twice = scipy_of("csr")
    twice.has_canonical_format = True
    right = model().fit(X, Y).embedding_x_
    np.testing.assert_allclose(model().fit(twice, Y).embedding_x_, right, rtol=1e-5)


def test_indices_that_lead_out_of_a_sparse_matrix_are_an_error():
    wrong = scipy.sparse.csr_array(X)
    wrong.indices[3] = 600
    with pytest.raises(ValueError, match="x is no valid sparse matrix"):
        start("primal", wrong, Y)
    with pytest.raises(ValueError, match="indices"):
        model().fit(wrong, Y)


def masked(values=X, at=((0, 3), (2, 1))):
    mask = np.zeros(values.shape, bool)
    mask[at] = True
    return np.ma.array(values, mask=mask)


WITH_GAPS = {
    "masked array": lambda: masked(),
    "masked tensor": lambda: torch.masked.masked_tensor(torch.from_numpy(X), torch.from_numpy(X > 0)),
    "nullable": lambda: pd.DataFrame(masked().filled(np.nan)).convert_dtypes(),
    "of Arrow": lambda: pd.DataFrame(masked().filled(np.nan)).convert_dtypes(dtype_backend="pyarrow"),
    "objects": lambda: pd.DataFrame(X).astype(object).where(~masked().mask, pd.NA),
    "polars": lambda: polars.from_pandas(pd.DataFrame(masked().filled(np.nan)).convert_dtypes().add_prefix("g")),
    "AnnData": lambda: anndata.AnnData(
        obsm={"X_gaps": pd.DataFrame(masked().filled(np.nan), index=map(str, range(20)))}
    ),
}


@pytest.mark.filterwarnings("ignore:.*(masked_tensors|MaskedTensor)")
@pytest.mark.parametrize("name", WITH_GAPS)
@pytest.mark.parametrize("way", ["fit", "fit y", "transform"])
def test_gaps_are_refused_with_the_remedy(name, way):
    gaps = WITH_GAPS[name]()
    options = {"use_rep": "X_gaps"} if name == "AnnData" else {}
    work = {
        "fit": lambda: model().fit(gaps, Y, **options),
        "fit y": lambda: model().fit(Y, gaps, **options),
        "transform": lambda: model().fit(X, Y).transform(gaps, **options),
    }
    with pytest.raises(ValueError, match=r"X|Y") as caught:
        work[way]()
    assert "fill" in str(caught.value)
    assert "drop" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*(masked_tensors|MaskedTensor)")
def test_masks_elsewhere():
    for name in ("masked array", "masked tensor"):
        with pytest.raises(ValueError, match=r"x: \d+ entries are masked: fill them"):
            start("primal", WITH_GAPS[name](), Y)
    kernel = masked(X @ X.T, (0, 0))
    with pytest.raises(ValueError, match="x: 1 entry is masked"):
        start("dual", Kernel(kernel), Kernel(Y @ Y.T))
    with pytest.raises(ValueError, match="e_x: 2 entries are masked"):
        metrics.foscttm(masked(), X, np.arange(20))
    with pytest.raises(ValueError, match="match: 1 entry is masked"):
        metrics.foscttm(X, X, masked(np.arange(20), 4))


def test_without_masked_entries_they_are_what_they_hold():
    whole = np.ma.array(X, mask=np.zeros(X.shape, bool))
    right = model().fit(X, Y)
    np.testing.assert_array_equal(model().fit(whole, Y).embedding_x_, right.embedding_x_)
    np.testing.assert_array_equal(right.transform(np.ma.array(X)), right.transform(X))
    assert start("primal", whole, Y).loss() == start("primal", X, Y).loss()
    assert metrics.foscttm(whole, whole, np.ma.arange(20)) == 0


def test_a_masked_label_is_none():
    labels = np.array(["a", "b"] * 10)
    gaps = np.where(np.arange(20) < 3, None, labels)
    for given in (masked(labels, slice(3)), pd.array(gaps, "string"), pd.Categorical(gaps)):
        found = [metrics.label_silhouette(X, X, given, labels), metrics.label_silhouette(X, X, gaps, labels)]
        assert found[0] == found[1]


FRAMES = {
    "pandas": lambda columns: pd.DataFrame(X, columns=list("abcdef"))[columns],
    "polars": lambda columns: polars.DataFrame(X, schema=list("abcdef")).select(columns),
    "Arrow": lambda columns: pyarrow.table({name: X[:, "abcdef".index(name)] for name in columns}),
    "protocol": lambda columns: Older(pd.DataFrame(X, columns=list("abcdef"))[columns]),
    "file": lambda columns: io.View(X[:, [*map("abcdef".index, columns)]], features=tuple(columns)),
    "record batch": lambda columns: pyarrow.record_batch({name: X[:, "abcdef".index(name)] for name in columns}),
}


class Older:
    """A data frame that has nothing but the older protocol."""

    def __init__(self, frame):
        self._frame = frame

    def __dataframe__(self, *arguments, **options):
        return self._frame.__dataframe__(*arguments, **options)


@pytest.mark.parametrize("kind", FRAMES)
def test_data_frames_of_all_kinds_keep_the_names_of_features(kind):
    frame, right = FRAMES[kind]([*"abcdef"]), model().fit(X, Y)
    found = model().fit(frame, Y)
    assert found.feature_names_x_ == tuple("abcdef")
    np.testing.assert_allclose(found.embedding_x_, right.embedding_x_, rtol=1e-4)
    for other in FRAMES:
        np.testing.assert_allclose(found.transform(FRAMES[other]([*"abcdef"])), right.transform(X), rtol=1e-4)
        with pytest.raises(
            ValueError, match=r"view 'x': the model was fitted with other .* order: feature 0 is 'f', was 'a'"
        ):
            found.transform(FRAMES[other]([*"fedcba"]))
    other_way = model().fit(Y, frame)
    assert other_way.feature_names_y_ == tuple("abcdef")
    with pytest.raises(ValueError, match="view 'y': the model was fitted with other features"):
        other_way.transform(FRAMES[kind]([*"fedcba"]), view="y")


class OfArrow:
    """A data frame that gives Arrow's stream, made when it is asked for."""

    def __init__(self, frame):
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self._frame.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    ("frame", "kind", "said"),
    [
        (
            OfArrow(pd.DataFrame({"a": ["x", 1]})),
            TypeError,
            "an? OfArrow .*: Expected bytes, got a 'int' object: .* column a",
        ),
        (OfArrow(pd.DataFrame({"a": [object()]})), ValueError, "an? OfArrow .*: Could not convert .* column a"),
        (OfArrow(pd.DataFrame({"a": [1j]})), NotImplementedError, "an? OfArrow .*: Unsupported numpy type .* column a"),
        (Older(pd.DataFrame({"a": [object()]})), NotImplementedError, "an? Older .*: Non-string object dtypes"),
    ],
)
def test_a_frame_that_arrow_cannot_hold_is_refused_with_its_column(frame, kind, said):
    with pytest.raises(ValueError, match=f"X: {said}") as refused:
        model().fit(frame, Y)
    assert isinstance(refused.value.__cause__, kind)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_what_is_no_fault_of_a_frames_columns_is_told_as_it_is(kind):
    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise kind("no room")

    with pytest.raises(kind, match="no room"):
        model().fit(Broken(), Y)


def test_a_frame_that_is_put_off_must_be_collected():
    with pytest.raises(ValueError, match="X is a LazyFrame: collect it first"):
        model().fit(polars.LazyFrame(X), Y)


def test_simulated_views_as_they_come():
    x, y, _ = simulate("branch", 20, 6)
    np.testing.assert_array_equal(model().fit(x, y).embedding_x_, model().fit(x.numpy(), y.numpy()).embedding_x_)


NUMBERS = {
    "NumPy": lambda value: (np.int64 if isinstance(value, int) else np.float64)(value),
    "NumPy, short": lambda value: (np.uint8 if isinstance(value, int) else np.float64)(value),
    "array": np.array,
    "tensor": lambda value: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_may_be_a_scalar_of_numpy_or_torch(kind, tmp_path):
    of = NUMBERS[kind]
    right = Settings(n_components=2, sigma=0.5, lambda1=1.0, init=("uniform", 0.0, 0.25), n_frequencies=3)
    given = Settings(of(2), of(0.5), of(1.0), init=("uniform", of(0.0), of(0.25)), n_frequencies=of(3))
    assert given == right
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(right))
    assert start("primal-fused", X, Y, given, seed=of(3)).loss() == start("primal-fused", X, Y, right, seed=3).loss()
    for ours, theirs in zip(
        simulate("branch", of(20), of(6), of(4), p_y=of(5)), simulate("branch", 20, 6, 4, p_y=5), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    numbers = {"n_components": 2, "sigma": 0.5, "lambda1": 0.5, "learning_rate": 0.25, "n_epochs": 4, "n_starts": 2}
    numbers |= {"loss_every": 2, "window": 2, "tolerance": 0.5, "random_state": 3, "batch_size": 100}
    scalars = {name: of(value) for name, value in numbers.items()}
    found = [
        MMDMA("primal-fourier", device="cpu", checkpoint=tmp_path / f"{k}.npz", **PLAIN | given).fit(X, Y)
        for k, given in enumerate((numbers, scalars))
    ]
    np.testing.assert_array_equal(found[0].embedding_x_, found[1].embedding_x_)
    found[1].save(tmp_path / "model.npz")
    loaded = MMDMA.load(tmp_path / "model.npz").get_params()
    assert {name: loaded[name] for name in numbers} == numbers
    labels, match = np.arange(20) % 2, np.arange(20)
    sampled = [metrics.evaluate(X, X[::-1], match, labels, labels, *more) for more in ((3, 5), (of(3), of(5)))]
    assert sampled[0].values == sampled[1].values
    assert metrics.top_k(X, X[::-1], match, of(2)) == metrics.top_k(X, X[::-1], match, 2)
    assert metrics.top_k(X, X[::-1], match, of(7.5), percent=True) == metrics.top_k(X, X[::-1], match, 7.5, True)


@pytest.mark.parametrize("seed", [0.5, "one", True, np.array([1, 2])])
def test_a_seed_that_is_no_integer(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        start("primal", X, Y, seed=seed)


def test_thirty_two_bits_are_no_limit_to_memory():
    needs = variant("primal").needs_bytes
    assert needs(*np.array([100_000, 100, 10], np.int32)) == needs(100_000, 100, 10)


def test_a_configuration_made_in_python():
    config = read()
    config["studies"]["laptop"] |= {"n": np.arange(200, 400, 100), "p": (np.int64(10),), "epochs": np.int32(2)}
    config |= {"study": "laptop", "device": "cpu", "seed": np.uint8(4)}
    study = load(config)
    assert (study.n, study.p, study.epochs, study.seed) == ((200, 300), (10,), 2, 4)
    assert type(study.seed) is int
