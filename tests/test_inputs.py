"""Bad input gets one line that names the argument and what is allowed."""

import numpy as np
import pytest
import scipy.sparse
import torch

import mmdma_core
from mmdma_core import Kernel, MissingDependency, Settings, inputs, simulate, start
from mmdma_core.inputs import as_device

X, Y, _ = simulate("branch", 20, 12)


def with_value(value):
    x = X.clone()
    x[3, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (with_value(float("nan")), Y, "x must be finite"),
        (X, with_value(float("inf")), "y must be finite"),
        (X[:1], Y, "x must have at least 2 cells"),
        (X, Y[:, :0], "y must have at least 2 cells and 1 feature"),
        (X[0], Y, "x must be a matrix"),
        (X, "text", "y must be a numeric matrix, got str"),
        (X, torch.complex(Y, Y), "y must be a real matrix, got torch.complex64"),
        (scipy.sparse.csr_array(X.numpy() * 1j), Y, "x must be a real matrix"),
        (scipy.sparse.csr_array(X.numpy() * np.nan), Y, "x must be finite"),
        (Kernel(X @ X.T), Y, "x and y must both be kernels"),
        (Kernel(X), Kernel(Y), "x: a kernel must be a dense square matrix"),
        (Kernel(X @ X.T + torch.arange(len(X))), Kernel(Y @ Y.T), "x: a kernel must be symmetric"),
        (X, Y.to("meta"), "x is on cpu and y on meta"),
    ],
)
def test_bad_views(x, y, message):
    with pytest.raises(ValueError, match=message):
        start("dual", x, y)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigma": 0}, "sigma must be a positive number, got 0"),
        ({"sigma": float("nan")}, "sigma must be a positive number"),
        ({"n_components": 0}, "n_components must be an integer of at least 1, got 0"),
        ({"n_components": 2.5}, "n_components must be an integer"),
        ({"lambda1": -1}, "lambda1 must be a number of at least 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number"),
        ({"unbiased": 1}, "unbiased must be true or false"),
        ({"init": ("unifrom",)}, "init must start with one of uniform, normal"),
        ({"init": ("uniform", 0, 1, 2)}, "takes at most the numbers"),
        ({"init": ("uniform", 1, 0)}, "low <= high"),
        ({"init": ("normal", 0, -1)}, "std >= 0"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changed)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().sigma = 2.0


def test_an_unknown_variant_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown variant 'primal-keop'; did you mean 'primal-keops'\?"):
        start("primal-keop", X, Y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="device 'cuda': no such GPU here, PyTorch finds none"):
        start("primal", X, Y, device="cuda")


UNKNOWN = ["gpu", "mps", "meta", "", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda:07", "cuda:0:1", " cuda", "cpu:3"]


@pytest.mark.parametrize("device", [*UNKNOWN, None, 1, -1, 1.5, True, b"cuda", torch.device("mps")])
@pytest.mark.parametrize(
    "ask",
    [
        lambda device: start("primal", X, Y, device=device),
        lambda device: mmdma_core.simulate("branch", 20, 5, device=device),
        lambda device: mmdma_core.MMDMA(device=device, n_epochs=1).fit(X.numpy(), Y.numpy()),
    ],
)
def test_an_unknown_device(device, ask):
    with pytest.raises(ValueError, match=r"^device must be 'cpu', 'cuda' or 'cuda:INDEX', got [^\n]*$"):
        ask(device)


@pytest.mark.parametrize("index", [2, 7, 128, 256, 300, 10**20])  # PyTorch reads 256 as 0
def test_a_gpu_beyond_those_that_are_there(monkeypatch, index):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", None)  # nothing is computed there
    with pytest.raises(ValueError, match=f"^device 'cuda:{index}': no such GPU here, PyTorch has cuda:0, cuda:1$"):
        start("primal", X, Y, device=f"cuda:{index}")
    assert as_device("cuda:1") == torch.device("cuda", 1)
    assert as_device(torch.device("cuda:0")).index == 0
    assert as_device("cpu").type == as_device("cpu:0").type == "cpu"


def test_a_gpu_that_does_not_compute_is_one_line(monkeypatch):
    def refuse(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nFor debugging")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "ones", refuse)
    inputs._why_it_does_not_compute.cache_clear()
    with pytest.raises(ValueError, match=r"^device 'cuda:1': CUDA error: no kernel image is [^\n]*; docs/gpu.md says"):
        as_device("cuda:1")
    inputs._why_it_does_not_compute.cache_clear()


@pytest.mark.parametrize("device", ["cuda:7", "cuda:-1", "cuda:x", "mps"])
def test_the_command_fit_refuses_a_device_before_it_reads(device, tmp_path, capsys):
    from mmdma_core.matching.command_line import main

    assert main(["fit", "--x", "no.npy", "--y", "no.npy", "--device", device, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: device ")
    assert not (tmp_path / "out").exists()


def test_starting_values_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"parameters must have shape \(12, 10\), got \(4, 10\)"):
        start("primal", X, Y, parameters=(torch.ones(4, 10), torch.ones(12, 10)))


def test_a_large_embedding_dimension_only_warns():
    with pytest.warns(UserWarning, match=r"n_components = 13 exceeds the shape \(20, 12\) of x"):
        run = start("primal", X, Y[:, :12].repeat(1, 2), Settings(n_components=13))
    run.step()


def test_dtypes_are_converted():
    integers = (X * 10).round().to(torch.int64)
    run = start("primal", integers, Y.double().numpy())
    assert {p.dtype for p in run.parameters} == {torch.float32}
    assert start("primal", X.double(), Y.double()).parameters[0].dtype == torch.float64
    assert start("dual", X.numpy().astype(np.float16), Y).parameters[0].dtype == torch.float32


def test_a_missing_dependency_says_what_to_install():
    mmdma_core.register("needs-nothing-known", label="", reference="", requires=("no_such_module",))(None)
    try:
        with pytest.raises(MissingDependency, match="pip install no_such_module"):
            start("needs-nothing-known", X, Y)
        with pytest.raises(ValueError, match="registered already"):
            mmdma_core.register("needs-nothing-known", label="", reference="")(None)
    finally:
        del mmdma_core.registry._VARIANTS["needs-nothing-known"]


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "-x", "lab/blocked", "../../../outside", "a\\b", "a b", "a\n", "a:b", "$x", "é"),
        *("x" * 101, "all", "Auto", None, 3),
    ],
)
def test_a_name_that_no_folder_could_have_is_refused_at_once(name):
    before = mmdma_core.variants()
    with pytest.raises(ValueError, match="cannot be the name of a variant; allowed: ") as error:
        mmdma_core.register(name, label="", reference="")(None)
    assert "\n" not in str(error.value)
    assert mmdma_core.variants() == before


@pytest.mark.parametrize("name", ["Primal", "PRIMAL-KEOPS"])
def test_names_that_differ_in_capitals_alone_are_refused(name):
    with pytest.raises(ValueError, match=f"named '{name.lower()}' is registered already; '{name}' could share"):
        mmdma_core.register(name, label="", reference="")(None)


@pytest.mark.parametrize("name", ["x", "_x", "7", "a.b-C_d", "x" * 100])
def test_other_names_are_taken(name, monkeypatch):
    monkeypatch.setattr(mmdma_core.registry, "_VARIANTS", {})
    mmdma_core.register(name, label="", reference="")(None)
    assert mmdma_core.variants() == [name]


@pytest.mark.parametrize(
    "init", [("uniform", 0.0, 0.1), ("uniform",), ("normal", 1.0, 2.0), ("xavier_uniform", 2.0), "xavier_normal"]
)
def test_starting_values_are_those_of_the_published_package(init):
    """It seeds PyTorch's global generator and fills the first view's parameters, then the second's."""
    settings = Settings(n_components=3, init=init)
    name, *arguments = settings.init
    torch.manual_seed(7)
    expected = [getattr(torch.nn.init, name + "_")(torch.empty(rows, 3), *arguments) for rows in (20, 30)]
    for drawn, right in zip(settings.draw(20, 30, seed=7), expected, strict=True):
        assert torch.equal(drawn, right)
