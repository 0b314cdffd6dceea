"""Models of memory: at known points, against PyTorch's own count, in the plan, and the frontier that they predict."""

import dataclasses
import gc
import json

import pandas as pd
import pytest
import tensor_cores
import torch
from conftest import ROOT
from test_records import known, load

import mmdma_core
from benchmarks import plan
from benchmarks.analysis import predict, published
from benchmarks.config import Further
from mmdma_core import Settings, advice, models, start, variant
from mmdma_core.fused import compose, fourier, views_cuda
from mmdma_core.fused import models as fused_models

D = Settings().n_components
LAST = {"primal": 20_000, "dual": 15_000, "dual-keops": 25_000}  # at every p, on 16 GB
PRIMAL_KEOPS = [
    (1000, 1_000_000),
    (2000, 700_000),
    (3000, 400_000),
    (4000, 300_000),
    (7000, 200_000),
    (10_000, 100_000),
]


def model(name):
    return variant(name).memory_model


@pytest.mark.parametrize(
    ("name", "n", "p", "numbers"),
    [
        ("primal", 10_000, 10, 9 * 10_000**2),
        ("primal", 10_000, 9_000, 6 * 10_000**2 + 7 * 9_000**2 + 2 * 10_000 * 9_000),
        ("primal", 5_000, 6_000, (6 + 4) * 5_000**2 + 2 * 5_000 * 6_000),
        ("primal-keops", 10_000, 9_000, 7 * 9_000**2 + 2 * 10_000 * 9_000),
        ("primal-keops", 5_000, 6_000, 4 * 5_000**2 + 2 * 5_000 * 6_000),
        ("dual", 10_000, 10, (2 + 6 + 4) * 10_000**2),
        ("dual-keops", 10_000, 10, (2 + 4) * 10_000**2),
        ("dual-keops", 10_000, 100_000, 2 * 10_000**2 + 2 * 10_000 * 100_000),  # both kernels while the data are held
        ("published-primal", 10_000, 10, 8 * 10_000**2),
        ("published-primal-keops", 5_000, 50_000, 3 * 5_000**2 + 3 * 5_000 * 50_000),
        ("original-2020", 5_000, 10, (2 + 3 * (D + 1) + 3 * D) * 5_000**2),
        ("original-2020-stream", 10_000, 10, 2 * 10_000**2 + (4 * (D + 1) + 3 * D) * 5_000**2),
        ("linear-time", 10_000, 9_000, 7 * 9_000**2 + 2 * 10_000 * 9_000),
    ],
)
def test_the_terms_that_count(name, n, p, numbers):
    """In float32; what is left out here is of size n d and p d."""
    thin = 4 * D * (17 * n + 8 * p)
    assert 0 <= model(name)(n, p, D) - 4 * numbers <= thin


@pytest.mark.parametrize("name", ["primal-fused", "dual-fused"])
def test_fused_holds_nothing_of_n_squared_and_a_gram_matrix_only_for_n_above_p(name, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    data = 2 * 4 * 100_000 * 100
    assert data < model(name)(100_000, 100, D) < 4 * data
    n = 3_000
    with_gram, without = (model(name)(n, p, D) - 2 * 4 * n * p for p in (n - 1, n + 1))
    assert with_gram > 8 * 3 * n**2 > 10 * without / 2
    two = model(name)(100_000, 100, D)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert model(name)(100_000, 100, D) - two > 14 * 16 * 2 * 100_000 * D  # each thread's float64 pulls of all points


@pytest.mark.parametrize(("n", "p"), [(1500, 20), (1000, 900), (900, 1000), (300, 6000)])
@pytest.mark.parametrize("name", ["primal", "primal-keops", "dual", "dual-keops"])
def test_the_model_is_pytorchs_own_peak(name, n, p, tmp_path):
    """PyTorch's allocator tells every allocation of making the views, of `start` and of two epochs: within 5 %."""
    if variant(name).absent():
        pytest.skip("KeOps is not installed")

    assert model(name)(n, p, D) == pytest.approx(peak(name, n, p, tmp_path), rel=0.05)


def peak(name, n, p, folder):
    """The most that PyTorch's allocator had allocated while views were made, a run started, and two epochs done."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        x, y = torch.rand(n, p), torch.rand(n, p)
        run = start(name, x, y)
        del x, y
        for _ in range(2):
            gc.collect()  # Triton's interpreter leaves copies of a kernel's arguments in cycles of references
            run.step()
    path = folder / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return pd.Series([event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]).cumsum().max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is used only without a GPU")
@pytest.mark.parametrize(
    ("n", "p", "at_once"), [(600, 20, 2**24), (500, 450, 2**16), (500, 450, 2**24), (300, 900, 2**24)]
)
@pytest.mark.parametrize("name", ["primal-fused", "dual-fused", "primal-fourier", "dual-fourier"])
def test_the_model_of_the_cuda_code_is_what_that_allocates(name, n, p, at_once, tmp_path, monkeypatch):
    """The code for CUDA on CPU tensors: within 10 %. at_once: numbers of a block of X.

    The kernels over the pairs are launched and run no block, since nothing is allocated there.
    """
    tensor_cores.only(monkeypatch, {"compact_blocks": [], "wide_blocks": []})
    monkeypatch.setattr(compose, "on_gpu", lambda device: True)
    monkeypatch.setattr(views_cuda, "_BLOCK_ELEMENTS", at_once)
    monkeypatch.setattr(fourier, "_BLOCK_ELEMENTS", at_once)
    monkeypatch.setattr(fused_models, "_AT_ONCE", at_once)
    assert variant(name).needs_bytes(n, p, D, device="cuda") == pytest.approx(peak(name, n, p, tmp_path), rel=0.1)


@pytest.mark.parametrize("name", mmdma_core.variants())
def test_on_cuda_no_thread_of_the_host_counts(name, monkeypatch):
    """5 GiB were predicted with 2 threads, 69 with 192."""
    found = []
    for threads in (2, 192):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append([variant(name).needs_bytes(n, 100, D, device="cuda") for n in (1000, 1_000_000)])
        found[-1].append(advice.choose(advice.Problem(10**6, 100, D, None, 2**34)).needs_bytes)
    assert found[0] == found[1]
    if name.endswith(("fused", "fourier")) and name.startswith("primal"):
        assert found[0][1] < 2 * 2 * 4 * 10**6 * 100  # no more than the data once more


def test_the_plan_of_a_gpu_counts_no_threads(tmp_path, monkeypatch):
    study = dataclasses.replace(
        load(tmp_path, study="paper"), device="cuda", variants=("primal-fused", "primal-fourier")
    )
    monkeypatch.setattr(plan, "machine_memory", lambda device: 2**34)
    said = []
    for threads in (2, 192):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        said.append({sweep: forecast.too_large for sweep, forecast in plan.Plan(study).forecasts().items()})
    assert said[0] == said[1]
    assert said[0]["primal-fused", 100] is None


def test_every_variant_of_the_project_has_a_model():
    own = [name for name in mmdma_core.variants() if variant(name).module.startswith("mmdma_core.")]
    assert [name for name in own if variant(name).memory_model is None] == []


def test_the_plan_names_what_will_not_fit_and_runs_it_all_the_same(tmp_path):
    small = dataclasses.replace(load(tmp_path), n=(100, 2000, 4000), p=(10, 150, 3000), host_gib=0.6)
    text = plan.describe(small)
    lines = {line.split()[0]: line for line in text.splitlines() if " to run" in line}
    assert lines["dual"].endswith("9 to run; predicted not to fit: p = 10 to 3000 from n = 4000")
    assert lines["primal"].endswith("9 to run; predicted not to fit: p = 3000 from n = 4000")
    assert lines["primal-keops"].endswith("9 to run")
    assert "what is predicted not to fit in the memory that a measurement may take is tried all the same" in text
    known(small, "dual", 4000, 10)  # measured: nothing is predicted about it
    forecasts = plan.Plan(small).forecasts()
    assert {p: forecasts["dual", p].too_large for p in small.p} == {10: None, 150: 4000, 3000: 4000}


def test_a_variant_without_a_model_is_planned_without_prediction(tmp_path, monkeypatch):
    small = dataclasses.replace(load(tmp_path), n=(10**6,), host_gib=0.5)
    assert "predicted" in plan.describe(small)
    unknown = {name: dataclasses.replace(variant(name), memory_model=None) for name in mmdma_core.variants()}
    monkeypatch.setattr(mmdma_core, "variant", unknown.__getitem__)
    assert "predicted" not in plan.describe(small)


def test_the_limit_of_a_cell_is_the_studys_or_that_of_what_lies_further(tmp_path):
    beyond = Further(variants=["primal-fourier"], n=[5000], p=[10], host_memory_gib=2.0)
    small = dataclasses.replace(load(tmp_path), host_gib=1.0, gpu_gib=3.0, further=(beyond,))
    assert plan.memory_limit(small, "primal-fourier", 100, 10) == 2**30
    assert plan.memory_limit(small, "primal-fourier", 5000, 10) == 2**31
    assert plan.memory_limit(small, "primal", 5000, 10) == 2**30
    assert plan.memory_limit(dataclasses.replace(small, device="cuda"), "primal-fourier", 5000, 10) == 3 * 2**30
    assert plan.memory_limit(dataclasses.replace(small, host_gib=None), "primal", 100, 10) is None
    assert small.ns("primal-fourier", 10) == (*small.n, 5000)
    assert small.ns("primal-fourier", 150) == small.ns("primal", 10) == small.n


def test_neighbours_in_the_grid_share_a_range():
    assert plan.ranges({10: 5, 100: 5, 3000: 5, 2000: 4}, (10, 100, 1000, 2000, 3000)) == [
        ("p = 10 to 100", 5),
        ("p = 2000", 4),
        ("p = 3000", 5),
    ]
    assert plan.ranges({10: 5, 1000: 5}, (10, 100, 1000)) == [("p = 10", 5), ("p = 1000", 5)]


def test_the_published_ends_are_those_that_were_published():
    ends = published.published_ends()
    assert {n for (name, _), n in ends.items() if name == "primal"} == {20_000}
    assert {name: ends[name, 2000] for name in LAST} == LAST
    assert [(p, ends["primal-keops", p]) for p, _ in PRIMAL_KEOPS] == PRIMAL_KEOPS


def test_the_frontier_is_predicted_for_the_variants_that_device_memory_ended():
    ends = predict.ends(16)
    for row in ends.itertuples():
        if row.variant in LAST:
            assert row.ours == row.package == row.published == LAST[row.variant]
        if row.variant == "primal-keops":
            assert row.ours >= row.published
            assert row.ours == row.published or row.p >= 2000
    originals = ends[ends["variant"].str.startswith("original")]
    assert dict(zip(originals["variant"], originals["ours"], strict=True)) == {
        "original-2019": 8_000,
        "original-2020": 8_000,
        "original-2020-stream": 14_000,
    }


def test_the_frontier_in_words():
    text = predict.describe_ends(16)
    rows = [line for line in text.splitlines() if line.startswith("  primal-keops")]
    assert rows[1].split()[1:] == ["p", "=", "2000", "1,000,000", "1,000,000", "700,000"]
    assert text.endswith("why it differs from the published: docs/reading.md, frontier")
    assert predict.describe_ends(1e-6).count("-") > 10


def test_the_docs_have_the_bound_that_the_published_ends_obey():
    ends, (ns, _) = published.published_ends(), published.grid()
    own = {p: n for (name, p), n in ends.items() if name == "primal-keops"}
    reached = max(n * p for p, n in own.items())
    refused = min(ns[ns.index(n) + 1] * p for p, n in own.items() if n < ns[-1])
    said = " ".join((ROOT / "docs" / "reading.md").read_text(encoding="utf-8").split())
    assert f"{reached / 1e9:g}e9 numbers in a view (n x p) were reached, {refused / 1e9:g}e9 were not" in said
    assert f"{20 * reached / 2**30:.1f} GiB where it ran and {20 * refused / 2**30:.1f} GiB where it did not" in said


def test_the_frontier_is_a_command(capsys, config_file):
    from benchmarks.__main__ import main

    assert main(["frontier", "--config", str(config_file), "--gpu-memory-gib", "80"]) == 0
    assert "the last n that fits in 80 GiB, d = 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (0.00068 * 2**30, "713 KiB"),
        (1000 * 2**10, "1,000 KiB"),
        (0.64 * 2**30, "655 MiB"),
        (2**30 - 1, "1,024 MiB"),
        (15.93 * 2**30, "15.9 GiB"),
        (2345 * 2**30, "2,345 GiB"),
    ],
)
def test_a_size_in_words(size, words):
    assert models.in_words(size) == words
