"""Updates from samples of the cells: right on average, at rest at the end, and offered where they can be."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from embeddings import PLAIN
from test_fourier_fits import unit_rows

from mmdma_core import MMDMA, Settings, Unsupported, simulate, start

SETTINGS = Settings(n_components=2, learning_rate=1e-3, lambda1=0.1, lambda2=0.1)


def sampled(n=900, size=200, n_updates=40, seed=0, **more):
    x, y, _ = simulate("branch", n, 15, p_y=12)
    return start("primal-fourier", x, y, SETTINGS, seed=seed, batch_size=size, n_updates=n_updates, **more)


def whole(n=900, **more):
    x, y, _ = simulate("branch", n, 15, p_y=12)
    return start("primal-fourier", x, y, SETTINGS, **more)


def test_the_gradient_of_samples_is_on_average_that_of_all_cells():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(p, 2, generator=generator) * 0.1 for p in (15, 12)]
    run = sampled(n_updates=1000, parameters=parameters)
    drawn = []
    for update in range(800):
        mmd = run.batches.take(0, update)
        mmd.begin(0, update)
        run._evaluate(mmd)
        drawn.append(torch.cat([view.gradient.clone() for view in run.views]).double())
    drawn = torch.stack(drawn)
    exact = torch.cat(
        start("primal-fused", *simulate("branch", 900, 15, p_y=12)[:2], SETTINGS, parameters=parameters).gradients()
    ).double()
    errors = (drawn.mean(0) - exact).abs() / (drawn.std(0) / len(drawn) ** 0.5)
    assert errors.max() < 4


def test_what_is_reported_is_of_all_cells():
    run, all_cells = sampled(), whole()
    run.step()
    all_cells.restore(run.state())
    assert run.loss() == all_cells.loss()
    run.step()
    assert [len(e) for e in run.embeddings()] == [900, 900]


def test_the_last_tenth_takes_all_cells_and_the_learning_rate_falls():
    run, taken, rates = sampled(n_updates=40), [], []
    for _ in range(40):
        run.step()
        taken.append(len(run.views[0].d_e))
        rates.append(run._adam.learning_rate)
    assert taken == [200] * 36 + [900] * 4
    assert rates[0] == 3 * SETTINGS.learning_rate
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_samples_are_drawn_afresh_without_repetition_as_a_function_of_seed_and_update():
    run = sampled()
    seen = []
    for seed, update in ((0, 0), (0, 1), (1, 0), (0, 0)):
        run.batches.take(seed, update)
        rows = run.views[0]._of_batch.x.copy()
        assert len(np.unique(rows, axis=0)) == 200
        seen.append(rows)
    assert np.array_equal(seen[0], seen[3])
    assert not any(np.array_equal(seen[0], other) for other in seen[1:3])


def test_a_run_in_batches_that_is_left_goes_on_to_the_same_numbers():
    first, second = sampled(seed=1), sampled(seed=2)
    for _ in range(30):
        first.step()
    second.restore(first.state())
    for run in (first, second):
        for _ in range(10):
            run.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))


def test_auto_takes_all_up_to_50_000_cells_and_then_20_000():
    def taken(variant, x, y):
        return start(variant, x, y, SETTINGS, batch_size="auto", n_updates=10).batch_size

    for n, size in ((50_000, None), (50_001, 20_000)):
        assert sampled(n, "auto").batch_size == size
    x, y, _ = simulate("branch", 60_000, 4)
    sparse = scipy.sparse.csr_array(x.numpy())
    assert taken("primal-fourier", sparse, y) is None
    assert taken("dual-fourier", x, y) is None
    assert taken("primal-fused", x, y) is None


@pytest.mark.parametrize("size", [0, 99, 2.5, True, "all"])
def test_a_bad_batch_size_is_named(size):
    with pytest.raises(ValueError, match="batch_size must be 'auto', None or an integer of at least 100, got"):
        MMDMA("primal-fourier", batch_size=size).fit(np.eye(300), np.eye(300))


def test_what_cannot_take_samples_says_so():
    x, y, _ = simulate("branch", 300, 20)
    with pytest.raises(Unsupported, match="batch_size is for primal-fourier, on dense views with fewer features than"):
        MMDMA("primal-fused", batch_size=100, n_epochs=1, n_starts=1, **PLAIN).fit(x, y)
    with pytest.raises(Unsupported, match="batch_size is for primal-fourier, on dense views with fewer features than"):
        start("primal-fourier", *simulate("branch", 300, 310)[:2], SETTINGS, batch_size=100, n_updates=1)
    with pytest.raises(ValueError, match="n_updates must be at least 1 with batch_size, got 0"):
        start("primal-fourier", x, y, SETTINGS, batch_size=100)


@pytest.mark.slow
def test_a_fit_in_batches_ends_where_one_of_all_cells_ends():
    """60,000 cells, where it is the default: the loss within 10 %."""
    x, y, _ = simulate("branch", 60_000, 20, noise="fast")
    views = unit_rows(x), unit_rows(y)
    losses = []
    for size in ("auto", None):
        model = MMDMA(
            "primal-fourier", n_epochs=150, n_starts=1, random_state=0, loss_every=150, batch_size=size, **PLAIN
        )
        losses.append(model.fit(*views).starts_["loss"][0])
    assert losses[0] < 1.1 * losses[1]
