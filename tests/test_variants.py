"""Every variant passes the common checks; a plugin that config.yaml lists is one of them, here and in no other test."""

import importlib
import subprocess
import sys

import common
import pytest
import scipy.sparse
import torch
import yaml
from conftest import ROOT

from mmdma_core import Kernel, Settings, Unsupported, kernels, registry, simulate, start, variant, variants

CPU = torch.device("cpu")
_WITHOUT_PLUGINS = dict(registry._VARIANTS)
for _module in yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")).get("plugins", []):
    importlib.import_module(_module)
_WITH_PLUGINS = dict(registry._VARIANTS)


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    monkeypatch.setattr(registry, "_VARIANTS", _WITH_PLUGINS)


def needs(name):
    """The marks of a variant's tests: what it requires that the set-up need not bring, or why it is skipped."""
    if "tensorflow" in variant(name).requires:
        return pytest.mark.tensorflow
    missing = variant(name).missing(CPU)
    return pytest.mark.skipif(bool(missing), reason=str(missing))


ALL = [pytest.param(name, marks=needs(name)) for name in variants()]
HELD = [parameter for parameter in ALL if not variant(parameter.values[0]).objective]
EXACT = [parameter for parameter in HELD if variant(parameter.values[0]).exact]


@pytest.mark.parametrize("case", common.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", HELD)
def test_loss_and_gradients(name, case):
    common.check_loss_and_gradients(name, case)


@pytest.mark.parametrize("name", HELD)
def test_training(name):
    common.check_training(name)


@pytest.mark.parametrize("name", ALL)
def test_starting_values(name):
    common.check_starting_values(name)


def accepting(form):
    return [parameter for parameter in EXACT if form in variant(parameter.values[0]).accepts]


@pytest.mark.parametrize("case", common.CASES[:4], ids=lambda case: case.name)
@pytest.mark.parametrize("name", accepting("sparse"))
def test_sparse_views(name, case):
    common.check_sparse(name, case)


@pytest.mark.parametrize("case", common.CASES[:4], ids=lambda case: case.name)
@pytest.mark.parametrize("name", accepting("kernel"))
def test_kernels(name, case):
    common.check_kernel(name, case)


# Runs of another package's Adam can neither be left nor begun again.
OURS = [parameter for parameter in ALL if not parameter.values[0].startswith(("published", "original-2019"))]


@pytest.mark.parametrize("name", OURS)
def test_state(name):
    common.check_state(name)


def test_other_variants_make_sparse_views_dense_and_say_so():
    x, y, _ = simulate("branch", 30, 11)
    sparse = scipy.sparse.csr_array(x.numpy())
    with pytest.warns(UserWarning, match=r"'dual' makes x \(30 x 11, sparse\) dense: 1320 bytes"):
        run = start("dual", sparse, y)
    assert run.loss() == start("dual", x, y).loss()


def test_other_variants_refuse_kernels():
    x, y, _ = simulate("branch", 30, 11)
    with pytest.raises(Unsupported, match=r"'primal' takes no kernels; variants that do: dual, dual-keops, dual-fused"):
        start("primal", Kernel(x @ x.T), Kernel(y @ y.T))


@pytest.mark.gpu
@pytest.mark.parametrize("case", common.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", HELD)
def test_on_the_gpu(name, case):
    missing = variant(name).missing(torch.device("cuda"))
    if missing and name == "original-2019":
        pytest.skip(missing)  # the tests install TensorFlow for the CPU
    assert missing is None
    common.check_loss_and_gradients(name, case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", HELD)
def test_training_on_the_gpu(name):
    common.check_training(name, "cuda")
    common.check_starting_values(name, "cuda")
    if "sparse" in variant(name).accepts and variant(name).exact:
        common.check_sparse(name, common.CASES[0], "cuda")
    if name in [parameter.values[0] for parameter in OURS]:
        common.check_state(name, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXACT)
def test_the_seed_gives_the_same_start_on_cpu_and_gpu(name):
    x, y, _ = simulate("branch", 30, 11)
    on_cpu, on_gpu = (start(name, x, y, device=device, seed=5).parameters for device in ("cpu", "cuda"))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("primal", "dual"), [("primal", "dual"), ("primal-keops", "dual-keops")])
def test_primal_is_dual_at_w_equals_x_transposed_alpha(primal, dual, unbiased):
    x, y, _ = simulate("branch", 67, 23, p_y=31)
    x = x[:45]
    settings = Settings(unbiased=unbiased, sigma=2.0)
    alpha = tuple(a / 20 for a in settings.draw(len(x), len(y), seed=0))
    w = tuple(view.T @ a for view, a in zip((x, y), alpha, strict=True))
    in_dual = start(dual, x, y, settings, parameters=alpha).loss()
    in_primal = start(primal, x, y, settings, parameters=w).loss()
    # The embeddings are of order 1 here, so that no term cancels: float32 rounding of sums of 67 products.
    assert in_dual == pytest.approx(in_primal, rel=2e-4, abs=2e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_keops_without_cuda_is_a_missing_dependency_on_a_gpu():
    """The proof that KeOps runs on the GPU fails here, in words, and does not fall back to the CPU."""
    pytest.importorskip("pykeops")
    assert "KeOps does not run on the GPU" in kernels._runs_on_gpu(torch.ones(4, 3))


def test_a_keops_that_computes_elsewhere_or_wrongly_is_found_out(monkeypatch):
    monkeypatch.setattr(kernels, "_keops_sum", lambda *arguments, **options: torch.tensor(3.0, dtype=torch.float64))
    assert "KeOps gives 3.0 on cpu where 16.0" in kernels._runs_on_gpu(torch.ones(4, 3))
    monkeypatch.setattr(kernels, "_keops_sum", lambda *arguments, **options: torch.tensor(16.0, dtype=torch.float64))
    assert kernels._runs_on_gpu(torch.ones(4, 3)) is None


def test_that_keops_has_no_cuda_is_said_where_a_gpu_is_asked_for_alone(tmp_path, monkeypatch, capsys):
    said = [
        "[KeOps] Warning : CUDA libraries not found or could not be loaded; Switching to CPU only.",
        "[KeOps] Warning : Cuda libraries were not detected on the system or could not be loaded ; using cpu only mode",
        "[KeOps] Warning : OpenMP library 'libgomp' not found.",
    ]
    (tmp_path / "says.py").write_text(f"print({chr(10).join(said)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for gpu, kept in ((False, said[2:]), (True, said)):
        monkeypatch.delitem(sys.modules, "says", raising=False)
        monkeypatch.delitem(sys.modules, "keopscore", raising=False)
        assert kernels.load_keops("says", gpu).__name__ == "says"
        assert capsys.readouterr().out.splitlines() == kept


@pytest.mark.parametrize("name", ["primal-keops", "published-dual-keops"])
def test_keops_on_a_cpu_is_imported_in_silence(name):
    pytest.importorskip("pykeops")
    code = f"from mmdma_core import variant; variant({name!r}).importer('pykeops')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stdout + done.stderr


def test_float64_views_are_computed_in_float64():
    x, y, _ = simulate("branch", 45, 23)
    x, y = x.double(), y.double()
    settings = Settings(n_components=2)
    for name in ("primal", "dual", "primal-keops"):
        run = start(name, x, y, settings)
        expected = common.reference_loss(common.formulation_of(run, x), x, y, *run.parameters, settings)
        assert run.loss() == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_the_distortion_has_a_gradient_at_zero():
    """W = I reproduces the data: R = 0, where a plain square root has an infinite derivative."""
    x, y, _ = simulate("branch", 40, 3)
    identity = torch.eye(3)
    run = start("primal", x, y, Settings(n_components=3), parameters=(identity, identity))
    assert run.loss().dis_x < 1e-15
    assert all(torch.isfinite(gradient).all() for gradient in run.gradients())


registry._VARIANTS.clear()  # for the other tests, from when this is collected
registry._VARIANTS.update(_WITHOUT_PLUGINS)
