"""The two originals and the approximate variants beyond the common checks."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo  # before TensorFlow: Triton, which it imports, has been seen to crash after it

from benchmarks.measuring import records
from mmdma_core import Settings, Unsupported, objective, simulate, start
from mmdma_core import kernels as sampled
from mmdma_core.external import original_2019
from mmdma_core.run import Adam

CPU = torch.device("cpu")
with_tensorflow = pytest.mark.tensorflow
ORIGINALS = [pytest.param("original-2019", marks=with_tensorflow), "original-2020"]
APPROXIMATE = ["original-2020-stream", "linear-time"]


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_mapping_of_the_weights(name):
    """Its own loss, unscaled norms with l1 and l2, is the dual's with lambda1 and lambda2, the published defaults."""
    x, y, _ = simulate("branch", 60, 20)
    settings = Settings()
    run = start(name, x, y, settings, seed=1)
    l1, l2 = settings.lambda1 / 20**0.5, settings.lambda2 / (60 * 20**0.5)
    expected = torch.zeros((), dtype=torch.float64)
    embeddings = []
    for view, alpha in zip((x.double(), y.double()), run.parameters, strict=True):
        alpha = alpha.detach().double()
        k = view @ view.T
        embeddings.append(k @ alpha)
        expected += l1 * (alpha.T @ k @ alpha - torch.eye(10)).norm() + l2 * (k - k @ alpha @ alpha.T @ k).norm()
    means = objective.gaussian_means(*embeddings, Settings(unbiased=False))
    expected += means[0] + means[1] - 2 * means[2]
    assert run.loss().total == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ORIGINALS)
def test_two_hundred_epochs_follow_the_dual(name):
    """The biased dual in float64 with the same Adam: amsgrad in 2020, none in 2019."""
    x, y, _ = simulate("branch", 80, 30)
    settings = Settings(learning_rate=1e-4)
    run = start(name, x, y, settings, seed=5)
    exact = start("dual", x.double(), y.double(), dataclasses.replace(settings, unbiased=False), seed=5)
    exact._adam = Adam(exact.parameters, settings.learning_rate, amsgrad=name == "original-2020")
    for epoch in range(200):
        if epoch % 25 == 0:
            assert run.loss().total == pytest.approx(exact.loss().total, rel=1e-4)
        run.step()
        exact.step()


def test_amsgrad_is_that_of_pytorch_and_differs():
    values = torch.linspace(1, 2, 5).double()
    gradients = [torch.full((5,), g).double() for g in [5.0] + [0.1] * 1000]
    ends = {}
    for amsgrad in (True, False):
        ours, theirs = values.clone(), values.clone().requires_grad_()
        adam, right = Adam([ours], 0.01, amsgrad), torch.optim.Adam([theirs], lr=0.01, amsgrad=amsgrad)
        for gradient in gradients:
            adam.step([gradient])
            theirs.grad = gradient
            right.step()
        torch.testing.assert_close(ours, theirs.detach())
        ends[amsgrad] = ours
    assert (ends[True] - ends[False]).abs().min() > 0.01


def test_the_terms_of_2020_come_to_the_host_in_every_epoch():
    x, y, _ = simulate("branch", 40, 10)
    run = start("original-2020", x, y)
    before = run.loss()
    run.step()
    assert run.last_terms == pytest.approx(before[1:])


def plain_estimate(name, e_x, e_y, sigma):
    """The estimator as the paper or the code has it, in float64, pair by pair."""

    def k(a, b):
        return torch.exp(-(a - b).square().sum(-1) / (2 * sigma))

    if name == "original-2020-stream":
        x0, x1, y0, y1 = e_x[::2], e_x[1::2], e_y[::2], e_y[1::2]
        return sum(
            s * k(a[:, None], b[None]).mean() for s, a, b in ((1, x0, x1), (1, y0, y1), (-1, x0, y1), (-1, x1, y0))
        )
    m = min(len(e_x), len(e_y)) // 2
    x, y = (e[sampled._random_order(len(e), CPU)] for e in (e_x, e_y))
    terms = [
        k(x[2 * i], x[2 * i + 1]) + k(y[2 * i], y[2 * i + 1]) - k(x[2 * i], y[2 * i + 1]) - k(x[2 * i + 1], y[2 * i])
        for i in range(m)
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize(("n_x", "n_y"), [(60, 60), (61, 61), (45, 70)])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_estimates_and_their_gradients_are_those_of_the_plain_formula(name, n_x, n_y):
    x, y, _ = simulate("branch", max(n_x, n_y), 8, p_y=11)
    x, y = x[:n_x], y[:n_y]
    settings = Settings(lambda1=0.0, lambda2=0.0, n_components=3, unbiased=False)  # it has but the unbiased one
    run = start(name, x, y, settings, seed=2)
    small = tuple(theta.detach() / (1 if name == "linear-time" else 100) for theta in run.parameters)
    run = start(name, x, y, settings, parameters=small)
    thetas = [theta.double().requires_grad_() for theta in small]
    dual = name == "original-2020-stream"
    kernels = [view.double() @ view.double().T if dual else view.double() for view in (x, y)]
    expected = plain_estimate(name, *(k @ theta for k, theta in zip(kernels, thetas, strict=True)), settings.sigma)
    assert run.loss().mmd == pytest.approx(expected.item(), abs=1e-6)
    for found, right in zip(run.gradients(), torch.autograd.grad(expected, thetas), strict=True):
        assert (found - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize("sums", [sampled.split_sums, sampled.linear_sums])
def test_estimates_are_right_on_average_over_the_order_of_the_rows(sums):
    generator = torch.Generator().manual_seed(0)
    e_x, e_y = torch.randn(60, 2, generator=generator), torch.randn(60, 2, generator=generator) + 0.7
    e_x, e_y = (e[e[:, 0].sort()[1]] for e in (e_x, e_y))  # sorted, as the rows of data are
    settings = Settings(n_components=2)
    exact = objective._squared_mmd(e_x.double(), e_y.double(), settings).item()
    found = []
    for _ in range(2000):
        orders = (torch.randperm(60, generator=generator) for _ in range(2))
        sum_xx, sum_yy, sum_xy = sums(*(e[order] for e, order in zip((e_x, e_y), orders, strict=True)), settings.sigma)
        found.append((sum_xx + sum_yy) / (60 * 59) - 2 * sum_xy / 60**2)
    found = torch.stack(found)
    assert found.mean().item() == pytest.approx(exact, abs=4 * found.std().item() / 2000**0.5)


def test_linear_time_holds_nothing_of_size_n_x_n(configure, command):
    root = configure({"n": [20_000], "p": [20], "variants": ["linear-time"], "epochs": 2})
    command("sweep")
    record = records.read(records.record_path(root, "linear-time", 20, 20_000))
    assert record.status == "ok", record.detail
    assert record.peak_host_bytes - 8 * 20_000 * 20 < 150 * 2**20  # one n x n matrix is 1.5 GiB


@with_tensorflow
def test_tensorflow_out_of_memory_is_oom_and_its_fork_computes(configure, command):
    """The server has imported TensorFlow, its children make the sessions."""
    root = configure({"n": [100, 1500, 1600], "p": [10], "variants": ["original-2019"]}, host_memory_gib=0.3)
    command("sweep")
    read = [records.read(records.record_path(root, "original-2019", 10, n)) for n in (100, 1500, 1600)]
    assert [record.status for record in read] == ["ok", "oom", "skipped"], [record.detail for record in read]


def test_a_broadcast_over_2_31_elements_on_a_gpu_is_unsupported_and_not_a_matter_of_memory():
    x = torch.zeros(14_655, 1)
    with pytest.raises(Unsupported, match=r"2\^31 elements"):
        original_2019.GraphRun(x, x, Settings(), torch.device("cuda"))


@with_tensorflow
def test_a_graph_over_two_gib_is_unsupported_and_not_a_matter_of_memory(monkeypatch):
    import tensorflow

    x, y, _ = simulate("branch", 20, 10)
    for message, expected in (("Cannot create a tensor proto whose content is larger than 2GB.", Unsupported),
                              ("something else", ValueError)):  # fmt: skip

        def refuse(value, message=message):
            raise ValueError(message)

        monkeypatch.setattr(tensorflow.compat.v1, "constant", refuse)
        with pytest.raises(ValueError, match=message) as caught:
            start("original-2019", x, y)
        assert caught.type is expected


@with_tensorflow
def test_tensorflow_multiplies_in_float32_alone(monkeypatch):
    import tensorflow

    allowed = tensorflow.config.experimental.tensor_float_32_execution_enabled
    run = start("original-2019", *simulate("branch", 20, 10)[:2])
    session, seen = run._session, []

    def spied(what):
        seen.append(allowed())
        return session.run(what)

    run._session = SimpleNamespace(run=spied)
    before = allowed()
    run.step()
    run.loss()
    assert seen == [False, False]
    assert allowed() == before


def test_tensorflow_without_a_gpu_is_a_missing_dependency_on_one(monkeypatch):
    fake = SimpleNamespace(config=SimpleNamespace(list_physical_devices=lambda kind: []))
    monkeypatch.setattr(original_2019, "load", lambda module: fake)
    assert "TensorFlow finds no GPU" in original_2019.works_on(torch.device("cuda"))
    assert original_2019.works_on(CPU) is None
