"""Ours against the package lsmmdma 0.1.11 itself: loss, gradients, curves, data; and that it is driven as it is.

The package comes without its tests (the wheel has none), so what can be said of its loss is restated from its formulas,
for its four variants and ours alike. Its metrics are compared in test_metrics.
"""

import os
import subprocess
import sys
from dataclasses import replace

import common
import numpy as np
import pytest
import torch

from mmdma_core import Settings, Unsupported, objective, simulate, start, variant
from mmdma_core.external import published

pytestmark = pytest.mark.slow

missing = variant("published-primal").missing(torch.device("cpu"))
installed = pytest.mark.skipif(bool(missing), reason=str(missing))
OURS = ["primal", "primal-keops", "dual", "dual-keops"]
BOTH = [*OURS, *(pytest.param(f"published-{name}", marks=installed) for name in OURS)]
ROUNDING = 2.0**-24  # of float32


@installed
@pytest.mark.parametrize("where", ["kernel values between 0 and 1", "the published start"])
@pytest.mark.parametrize(("n", "p"), [(300, 100), (80, 200), (90, 90)])
@pytest.mark.parametrize("name", OURS)
def test_terms_and_gradients_are_the_published_ones(name, n, p, where):
    """1e-5 relative; MMD2 and the gradient relative to the parts that cancel in them (see common).

    The package takes |x|^2 + |y|^2 - 2 x.y from points that are not centred. Each of the three has a rounding of the
    largest squared norm, over 2 sigma in the exponent: at its own start, where norms are large, that is the bound.
    """
    x, y, _ = simulate("branch", n, p)
    settings = Settings()
    formulation = name.split("-")[0]
    rows = [len(theta) for theta in start(name, x, y).parameters]
    drawn = settings.draw(*rows, seed=3)
    informative = common.informative_parameters(formulation, x, y, rows, settings)
    parameters = drawn if where == "the published start" else informative
    ours, theirs = (start(which, x, y, settings, parameters=parameters) for which in (name, f"published-{name}"))

    a, b = ours.loss(), theirs.loss()
    for term in ("pen_x", "pen_y", "dis_x", "dis_y"):
        assert getattr(a, term) == pytest.approx(getattr(b, term), rel=1e-5), term
    problem = (formulation, x, y, *parameters, settings)
    embeddings = objective.reference_embeddings(*problem[:-1])
    largest = max(float(e.square().sum(1).max()) for e in embeddings)
    exponent = 0.0 if name.endswith("keops") else 4 * largest * ROUNDING / (2 * settings.sigma)
    allowed = common.tolerances(*problem)
    # It adds the diagonals and takes them off again: the means with them bound the rounding.
    means = objective.gaussian_means(*embeddings, replace(settings, unbiased=False))
    assert abs(a.mmd - b.mmd) <= (common.MMD_TOLERANCE + exponent) * float(means[0] + means[1] + 2 * means[2])
    for ga, gb, most in zip(ours.gradients(), theirs.gradients(), allowed["gradients"], strict=True):
        assert (ga - gb).norm() <= most * (1 + exponent / common.GRADIENT_TOLERANCE)


@installed
@pytest.mark.parametrize("learning_rate", [1e-5, 3e-5])
@pytest.mark.parametrize("name", OURS)
def test_five_hundred_epochs_follow_the_published_curve(name, learning_rate):
    x, y, _ = simulate("branch", 100, 40)
    settings = Settings(learning_rate=learning_rate)
    ours, theirs = (start(which, x, y, settings, seed=5) for which in (name, f"published-{name}"))
    curves = []
    for run in (ours, theirs):
        curves.append([run.loss().total])
        for epoch in range(1, 501):
            run.step()
            if epoch % 25 == 0:
                curves[-1].append(run.loss().total)
    assert ours.epoch == theirs.epoch == 500
    assert curves[0][-1] < curves[0][0]
    # The loss passes 0, so its start is the scale. Adam divides by the root of the second moment, which takes all
    # accuracy from gradients near 0: in float32 the dual, at 1e-4, ends a percent away from float64 in either code.
    assert curves[0] == pytest.approx(curves[1], rel=0, abs=1e-4 * curves[0][0])


@installed
@pytest.mark.parametrize("mode", ["primal", "dual"])
def test_a_step_is_an_epoch_of_its_own_loop(mode):
    """Bit for bit: its `train_and_evaluate` called for 7 epochs, as its command line does, and 7 steps."""
    train = published.load("lsmmdma.train")
    x, y, _ = simulate("branch", 60, 20)
    run = start(f"published-{mode}", x, y, Settings(learning_rate=1e-3), seed=2)
    for _ in range(7):
        run.step()
    weight = 1e-4 / np.sqrt(20) if mode == "dual" else 1e-4
    config = train.ModelGetterConfig(
        seed=2, learning_rate=1e-3, low_dim=10, n_record=0, n_eval=0, pca=0, sigmas=1.0, lambda1=weight, lambda2=weight,
        n_iter=7, mode=mode, keops=False, init="uniform,0.,0.1", window_size=0,
    )  # fmt: skip
    views = map(train.get_kernel, (x, y)) if mode == "dual" else (x, y)
    _, model, *_ = train.train_and_evaluate(config, *views, None, "", torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(run.parameters, model.parameters(), strict=True))
    assert run.epoch == 7


@installed
@pytest.mark.parametrize(("n", "p", "seed"), [(1000, 100, 4), (37, 3, 7), (501, 700, 4), (5, 1, 0), (2000, 10, 123)])
def test_the_data_are_those_of_its_generator_bit_for_bit(n, p, seed):
    generate = published.load("lsmmdma.data.data_pipeline").generate_data
    x, y, match = generate("", n, p, seed)
    found = simulate("branch", n, p, seed)
    assert torch.equal(found.x, x)
    assert torch.equal(found.y, y)
    assert np.array_equal(found.match, match)


@pytest.mark.parametrize("name", BOTH)
def test_the_loss_of_cases_whose_value_is_known(name):
    """Identical clouds; a W with orthonormal columns; a W that gives the data back."""
    x, y, _ = simulate("branch", 50, 4)
    settings = Settings(n_components=4)
    if "dual" in name:  # X^T alpha = I
        identity = tuple(torch.linalg.pinv(view.double()).T.float() for view in (x, y))
    else:
        identity = (torch.eye(4), torch.eye(4))
    loss = start(name, x, y, settings, parameters=identity).loss()
    assert max(loss.pen_x, loss.pen_y, loss.dis_x, loss.dis_y) < 2e-3  # 0, but for the root of a rounding
    same = (identity[0], identity[0])
    biased = start(name, x, x, replace(settings, unbiased=False), parameters=same).loss()
    assert biased.mmd == pytest.approx(0, abs=1e-6)
    unbiased = start(name, x, x, settings, parameters=same).loss().mmd
    mean = objective.gaussian_means(x.double(), x.double(), replace(settings, unbiased=False))[2].item()
    assert unbiased == pytest.approx(2 * ((50 * mean - 1) / 49 - mean), abs=2e-6)


@installed
@pytest.mark.parametrize("guarded", [True, False])
def test_keops_cache_survives_the_import(guarded, tmp_path):
    """The package wipes it; not when it is loaded here."""
    do = "from mmdma_core.external.published import load, _placeholders\n"
    do += "load('lsmmdma.train')" if guarded else "with _placeholders(): import lsmmdma.train"
    code = f"import pykeops, pathlib\nmark = pathlib.Path(pykeops.get_build_folder()) / 'mark'\nmark.touch()\n{do}\n"
    code += "print('kept' if mark.exists() else 'wiped')"
    environment = os.environ | {"KEOPS_CACHE_FOLDER": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["kept" if guarded else "wiped"], done.stderr


@installed
def test_it_loads_where_what_it_reads_files_with_is_absent():
    """PyTorch looks for TensorFlow when it is trained with; it must not find what stands in for it."""
    hide = "import sys\nfor name in ('scanpy', 'tensorflow', 'tensorboard'): sys.modules[name] = None\n"
    code = hide + "from mmdma_core.external.published import load\nprint(load('lsmmdma').__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["lsmmdma.train"], done.stderr


def test_placeholders_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(published, "_FILE_ACCESS", {"absent_one": "absent_one", "absent_one.io": "absent_one"})
    with published._placeholders():
        from absent_one.io import gfile

        assert gfile.GFile
    with pytest.raises(ModuleNotFoundError):
        import absent_one  # noqa: F401


@installed
def test_what_it_does_not_take_is_said():
    x, y, _ = simulate("branch", 30, 12, p_y=11)
    with pytest.raises(Unsupported, match="as many features"):
        start("published-dual", x, y)
    with pytest.raises(Unsupported, match="float32"):
        start("published-primal", x.double(), y.double())
    assert start("published-primal", x, y).loss().total > 0


def test_where_it_is_absent_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(type(variant("published-dual")), "absent", lambda self: ("lsmmdma",))
    assert "needs lsmmdma: pip install --no-deps lsmmdma" in variant("published-dual").missing(torch.device("cpu"))
