"""The peers of MMD-MA: their plans and projections on small arrays; with their packages, what they find."""

import dataclasses

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from benchmarks.experiments import peers
from mmdma_core import metrics, simulate


def dense(parts, shape):
    """The plan in blocks as one matrix."""
    plan = np.zeros(shape)
    for cells_x, cells_y, block in parts:
        plan[np.ix_(cells_x, cells_y)] += block.toarray()
    return plan


@pytest.fixture
def quantised():
    """A plan between parts of unequal sizes, with its cells in random order: plan, cells of x, cells of y."""
    rng = np.random.default_rng(0)
    cells_x, cells_y = rng.permutation(20), rng.permutation(23)
    parts_x, parts_y = np.split(cells_x, [3, 4, 11]), np.split(cells_y, [9, 15])
    w_x, w_y = (np.array([len(part) for part in parts]) for parts in (parts_x, parts_y))
    return np.outer(w_x / 20, w_y / 23), parts_x, parts_y


def test_row_and_column_sums_of_a_quantised_plan_are_the_weights_of_the_cells(quantised):
    plan = dense(peers.blocks(*quantised), (20, 23))
    np.testing.assert_allclose(plan.sum(1), 1 / 20, atol=1e-9)
    np.testing.assert_allclose(plan.sum(0), 1 / 23, atol=1e-9)
    assert plan.min() == 0


def test_a_quantised_plan_keeps_the_order_inside_each_pair_and_is_sparse(quantised):
    for cells_x, cells_y, block in peers.blocks(*quantised):
        assert block.nnz < len(cells_x) + len(cells_y)
        rows, columns = block.nonzero()
        assert (np.diff(rows) >= 0).all()
        assert (np.diff(columns) >= 0).all()


def test_one_dimensional_transport_by_hand():
    """Three cells on two: the middle one is halved."""
    plan = dense(peers.blocks(np.ones((1, 1)), [np.arange(3)], [np.arange(2)]), (3, 2))
    np.testing.assert_allclose(plan, np.array([[2, 0], [1, 1], [0, 2]]) / 6)


def test_projections_are_those_of_the_dense_plan(quantised):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(23, 5))
    plan = dense(peers.blocks(*quantised), (20, 23))
    found = peers.projected(peers.blocks(*quantised), y, 20)
    np.testing.assert_allclose(found, plan @ y / plan.sum(1, keepdims=True), rtol=1e-12)

    q, r, g = rng.random((20, 4)), rng.random((23, 4)), rng.random(4)
    plan = q / g @ r.T
    found = peers.projected_by_factors(q, r, g, y)
    np.testing.assert_allclose(found, plan @ y / plan.sum(1, keepdims=True), rtol=1e-12)


def test_names_are_those_of_the_peers():
    assert {name: peer.name for name, peer in peers.PEERS.items()} == {name: name for name in peers.PEERS}
    assert set(peers.PEERS) == {"quantised-gw", "low-rank-gw"}


def test_what_is_absent_is_named_with_what_to_install():
    peer = dataclasses.replace(peers.PEERS["low-rank-gw"], requires=("numpy", "no_such_module", "nor_this"))
    wanted = "low-rank-gw needs no_such_module, nor_this: pip install 'mmdma-benchmark[peers]'"
    assert peers.missing(peer) == wanted
    assert peers.missing(dataclasses.replace(peer, requires=("numpy",))) is None


@pytest.fixture
def rotated():
    """Cells without a mirror image, y the same in another space and order: x, y, match."""
    rng = np.random.default_rng(0)
    x = normalize(rng.exponential(size=(240, 3)) * [3, 2, 1])
    axes, _ = np.linalg.qr(rng.normal(size=(5, 3)))
    order = rng.permutation(240)
    return x, (x @ axes.T)[order], np.argsort(order)


@pytest.mark.peers
@pytest.mark.parametrize("peer", peers.PEERS.values(), ids=peers.PEERS)
def test_the_start_of_the_lowest_loss_finds_a_rotation(peer, rotated):
    assert peers.missing(peer) is None
    x, y, match = rotated
    found = [peer.fit(x, y, seed) for seed in range(3)]
    best = min(found, key=lambda one: one.loss)
    assert metrics.foscttm(best.e_x, best.e_y, match) < 0.15
    again = peer.fit(x, y, 0)
    np.testing.assert_allclose(again.e_x, found[0].e_x, rtol=1e-6, atol=1e-6)
    assert again.loss == pytest.approx(found[0].loss)


@pytest.mark.peers
@pytest.mark.parametrize("peer", peers.PEERS.values(), ids=peers.PEERS)
def test_a_peer_takes_views_of_unequal_sizes(peer):
    x, y, _ = simulate("branch", 260, 20, p_y=12)
    x, y = x.numpy()[:240], y.numpy()
    one = peer.fit(x, y, 0)
    assert one.e_x.shape == (240, 12)
    assert one.e_y is y
    assert ((one.e_x > y.min(0) - 1e-5) & (one.e_x < y.max(0) + 1e-5)).all()  # a mean of cells of y lies among them
    assert set(one.seconds) == {"prepare_s", "compile_s", "fit_s"}
    assert (one.seconds["compile_s"] > 0) == ("jax" in peer.requires)


@pytest.mark.peers
def test_jax_multiplies_in_float32_alone(monkeypatch):
    import jax

    jit, seen = jax.jit, []

    def spied(*given, **options):
        seen.append(jax.config.jax_default_matmul_precision)
        return jit(*given, **options)

    monkeypatch.setattr(jax, "jit", spied)
    x, y, _ = simulate("branch", 60, 5)
    peers.PEERS["low-rank-gw"].fit(x.numpy(), y.numpy(), 0)
    assert seen[-1] == "highest"
