"""One run over several processes: losses, embeddings and parameters are those of one, whatever rows a rank holds."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import quick_triton  # noqa: F401  (in each rank)
import scipy.sparse
import torch
from embeddings import PLAIN
from groups import in_group, shares
from torch import distributed

from mmdma_core import MMDMA, Settings, Unsupported, formulations, simulate, start
from mmdma_core.formulations import SparsePrimal
from mmdma_core.fused.fourier import CudaFrequencies, FourierMMD
from mmdma_core.fused.pairs_cuda import FusedMMD, candidates
from mmdma_core.fused.ranks import ranks_of
from mmdma_core.fused.views_cuda import CudaRun, CudaView
from mmdma_core.inputs import as_views
from mmdma_core.matching.preprocess import digest

pytestmark = pytest.mark.slow

EPOCHS = 30
SETTINGS = Settings(n_components=3, learning_rate=5e-3, lambda1=1e-2, lambda2=0.3)
CPU = torch.device("cpu")
# Own rows of x in each rank but the last, which has the rest; of y all ranks have about as many.
SHARES = {1: (), 2: (2,), 3: (2, 400)}
FEW = {1: (), 2: (2,), 3: (2, 130)}  # of 150 rows, for kernels that Triton interprets
CASES = {
    "exact": ("primal-fused", 700, 20, SETTINGS, False),
    "exact-wide": ("primal-fused", 700, 20, replace(SETTINGS, sigma=1e-3, learning_rate=1e-4), False),
    "exact-biased": ("primal-fused", 700, 20, replace(SETTINGS, unbiased=False), False),
    "exact-few-cells": ("primal-fused", 500, 600, replace(SETTINGS, learning_rate=1e-4), False),
    "exact-sparse": ("primal-fused", 700, 20, SETTINGS, True),
    "exact-sparse-few-cells": ("primal-fused", 500, 600, SETTINGS, True),
    "fourier": ("primal-fourier", 700, 20, SETTINGS, False),
    "fourier-sparse": ("primal-fourier", 700, 20, SETTINGS, True),
}


def views(n, p, sparse=False):
    x, y, _ = simulate("branch", n, p, p_y=p + 3)
    y = y[:-30]
    if sparse:
        return [scipy.sparse.csr_array((view * (view.abs() > 1)).numpy()) for view in (x, y)]
    return [x, y]


def own(view, rank, size, which, own_rows=SHARES):
    sizes = own_rows[size]
    n = view.shape[0]
    sizes = sizes if which == 0 else tuple(n // size for _ in sizes)
    return view[shares(n, [*sizes, 0])[rank]]


def trained(case, rank, size):
    """Losses every 10 epochs, the embeddings of the rows here, parameters, and gradients before the first epoch."""
    name, n, p, settings, sparse = CASES[case]
    x, y = (own(view, rank, size, which) for which, view in enumerate(views(n, p, sparse)))
    run = start(name, x, y, settings, seed=1, group=distributed.group.WORLD)
    return followed(run)


def followed(run, epochs=EPOCHS):
    gradients = [g.numpy() for g in run.gradients()]
    losses = []
    for epoch in range(epochs + 1):
        if epoch % 10 == 0:
            losses.append(run.loss())
        if epoch < epochs:
            run.step()
    embeddings = [e.numpy() for e in run.embeddings()]
    return {
        "losses": np.array(losses),
        "x": embeddings[0],
        "y": embeddings[1],
        "parameters": [p.detach().numpy() for p in run.parameters],
        "gradients": gradients,
    }


def agree(answers, alone):
    """All that the ranks found is what one process finds, to 1e-6 of its size."""
    first = answers[0]
    for answer in answers:
        assert np.array_equal(answer["losses"], first["losses"])
        assert all(np.array_equal(a, b) for a, b in zip(answer["parameters"], first["parameters"], strict=True))
    near(first["losses"][:, 0], alone["losses"][:, 0])
    for name in ("x", "y"):
        near(np.concatenate([answer[name] for answer in answers]), alone[name])


def near(found, right, tolerance=1e-6):
    assert found.shape == right.shape
    assert np.linalg.norm(found - right) <= tolerance * np.linalg.norm(right)


def in_blocks(rank, size):
    """What runs on CUDA, on the CPU."""
    answers = []
    for n, p in ((700, 20),):
        data = as_views(*(own(view, rank, size, which) for which, view in enumerate(views(n, p))), CPU)
        ranks = [ranks_of(distributed.group.WORLD, CPU, len(x)) for x in data]
        n_x, n_y = (of_view.n for of_view in ranks)
        mmd = FourierMMD(n_x, n_y, SETTINGS, partial(CudaFrequencies, device=CPU), ranks=ranks[0])
        parts = [CudaView(x, SETTINGS, of_view) for x, of_view in zip(data, ranks, strict=True)]
        answers.append(followed(CudaRun(tuple(parts), mmd, replace(SETTINGS, learning_rate=1e-3), data[0], seed=1)))
    return answers


def in_kernels(rank, size):
    """The same with the exact MMD2, whose kernels run in Triton's interpreter."""
    answers = {}
    for p in (20, 160):
        data = as_views(*(own(view, rank, size, which, FEW) for which, view in enumerate(views(150, p))), CPU)
        ranks = tuple(ranks_of(distributed.group.WORLD, CPU, len(x)) for x in data)
        d, tile = SETTINGS.n_components, candidates(SETTINGS.n_components)[-1]  # of 64 rows: five blocks to share out
        mmd = FusedMMD(*(of_view.n for of_view in ranks), d, SETTINGS.sigma, True, tile, ranks)
        parts = [CudaView(x, SETTINGS, of_view) for x, of_view in zip(data, ranks, strict=True)]
        answers[f"kernels, p = {p}"] = followed(CudaRun(tuple(parts), mmd, SETTINGS, data[0], seed=1), epochs=2)
    return answers


def in_samples(rank, size):
    x, y = (own(view, rank, size, which) for which, view in enumerate(views(700, 20)))
    group = distributed.group.WORLD
    return followed(start("primal-fourier", x, y, SETTINGS, seed=1, group=group, batch_size=100, n_updates=EPOCHS))


def of_dense_blocks(rank, size):
    """The constants of sparse views as on CUDA, and what is said where the last rank's blocks are zero."""
    found = {}

    def zero(*factors):
        return ((rows, block * (rank < size - 1)) for rows, block in formulations._dense_blocks(*factors))

    for p in (20, 800):
        x, _ = as_views(*(own(view, rank, size, 0) for view in views(700, p, sparse=True)), CPU)
        ranks = ranks_of(distributed.group.WORLD, CPU, len(x))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formulations, "_sparse_blocks", formulations._dense_blocks)
            found[p] = float(SparsePrimal(x, ranks)._constant)
            patch.setattr(formulations, "_sparse_blocks", zero)
            with pytest.raises(RuntimeError) as said:
                SparsePrimal(x, ranks)
        found[f"{p}, zeros"] = str(said.value)
    return found


def refused(rank, size):
    x, y = (view[:40] for view in views(80, 5))
    with pytest.raises(Unsupported) as said:
        start("dual-fused", x, y, SETTINGS, group=distributed.group.WORLD)
    return str(said.value)


def pairs_of_panels(rank, size):
    x, y = (view[rank * 1500 : (rank + 1) * 1500] for view in views(3000, 5))
    run = start("primal-fused", x, y, SETTINGS, group=distributed.group.WORLD)
    return run.mmd._pairs.tolist()


def fitted(rank, size):
    """MMDMA in the group: the variant, sigma and means are those of all rows."""
    x, y = (own(view, rank, size, which).numpy() for which, view in enumerate(views(700, 20)))
    training = {"n_starts": 2, "n_epochs": 20, "loss_every": 10, "random_state": 0, "device": "cpu"}
    model = MMDMA(sigma="median", center=True, **training, **PLAIN).fit(x, y)
    return {
        "x": model.embedding_x_,
        "y": model.embedding_y_,
        "told": (model.variant_, model.starts_["seed"].tolist(), model.n_iter_),
        "sigma": model.sigma_,
        "losses": model.loss_history_["total"].to_numpy(),
        "question": digest(["asked"], [x, scipy.sparse.csr_array(y * (y > 1))]),
    }


def everything(rank, size):
    """All that a rank is asked here, in one process, since a process takes seconds to begin."""
    found = {case: trained(case, rank, size) for case in CASES}
    found |= {"blocks": in_blocks(rank, size)[0]} | in_kernels(rank, size)
    found |= {"dense blocks": of_dense_blocks(rank, size)}
    found |= {"samples": in_samples(rank, size), "fitted": fitted(rank, size)}
    return found | ({"refused": refused(rank, size), "pairs": pairs_of_panels(rank, size)} if size == 2 else {})


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    return {size: in_group(size, everything, folder) for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", [*CASES, "blocks", "kernels, p = 20", "kernels, p = 160", "samples"])
def test_the_result_does_not_depend_on_the_number_of_ranks(answers, case, size):
    """Blocks and kernels: what runs on CUDA, on the CPU. In most samples a rank with 2 rows has none."""
    agree([answer[case] for answer in answers[size]], answers[1][0][case])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("p", [20, 800])
def test_dense_blocks_of_sparse_views_are_checked_by_all_ranks(answers, p, size):
    found = [answer["dense blocks"] for answer in answers[size]]
    x = torch.from_numpy(views(700, p, sparse=True)[0].toarray()).double()
    (constant,) = {answer[p] for answer in found}
    assert constant == pytest.approx(float((x @ x.T).square().sum()), rel=1e-12)
    (said,) = {answer[f"{p}, zeros"] for answer in found}
    assert said.startswith("products of a sparse view are wrong on cpu")


@pytest.mark.parametrize("size", [2, 3])
def test_an_estimator_in_a_group_is_that_of_one_process(answers, size):
    alone, found = answers[1][0]["fitted"], [answer["fitted"] for answer in answers[size]]
    for answer in found:
        assert (answer["told"], answer["question"]) == (alone["told"], alone["question"])
        assert answer["sigma"] == pytest.approx(alone["sigma"], rel=1e-6)
        near(answer["losses"], alone["losses"])
    for name in "xy":
        near(np.concatenate([answer[name] for answer in found]), alone[name], 1e-5)


def test_what_runs_in_one_process_says_what_to_take(answers):
    for answer in answers[2]:
        assert (
            answer["refused"] == "variant 'dual-fused' runs in one process; take primal-fused or primal-fourier for 2"
        )


def test_each_pair_of_panels_is_taken_by_one_rank(answers):
    shared_out = [answer["pairs"] for answer in answers[2]]
    assert abs(len(shared_out[0]) - len(shared_out[1])) <= 1
    taken = [tuple(pair) for pairs in shared_out for pair in pairs]
    panels = -(-3000 // 256) + -(-2970 // 256)
    assert sorted(taken) == [(i, j) for i in range(panels) for j in range(i, panels)]
