"""The experiment `scale`, small: every start in the table, what ends without a result, what is known."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT, own_config

from benchmarks import study
from benchmarks.config import ConfigError
from benchmarks.experiments import fits, scale

CONFIG = own_config() | {"device": "cpu", "study": "smoke", "machine": "here"}
ASKED = CONFIG["scale"] | {
    "n": [200, 400],
    "p": 10,
    "variants": ["primal", "primal-fourier"],
    "peers": ["quantised-gw"],
    "batch_size": 300,
    "n_epochs": 5,
    "n_starts": 2,
    "refined": {"n": [200], "shapes": ["branch"], "data_seeds": [4, 5]},
}


@pytest.fixture
def here(tmp_path):
    return study.load(CONFIG | {"results": str(tmp_path)})


def table_of(here, asked):
    """The table, and what was printed: by a process of its own, since this one has computed and must not fork."""
    config = here.root.parent / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG | {"results": str(here.root.parent), "scale": asked}))
    command = [sys.executable, "-m", "benchmarks", "scale", "--config", str(config)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return pd.read_csv(here.root / "scale" / "scale.csv"), done.stdout


def test_every_start_is_in_the_table_and_the_chosen_one_is_marked(here):
    table, said = table_of(here, ASKED)
    assert "start 0: ok" in said
    beside = table[table["method"] == "primal-fourier refined"]
    assert beside[["n", "start", "chosen"]].to_numpy().tolist() == [[200, 0, True]]
    assert beside["loss_is"].tolist() == ["none: nothing is trained"]
    table = table.drop(beside.index)
    counts = table.groupby(["method", "n"]).size()
    assert set(counts) == {2}
    assert ("primal-fourier in batches", 400) in counts.index
    assert ("primal-fourier in batches", 200) not in counts.index
    ended = table[table["status"] == "ok"]
    assert set(ended["method"]) == {"primal", "primal-fourier", "primal-fourier in batches"}
    for _, starts in ended.groupby(["method", "n"]):
        assert starts.loc[starts["chosen"], "loss"].tolist() == [starts["loss"].min()]
    assert ended[["seconds", "foscttm", "peak_gib", "compile_s", "data_s"]].notna().all(axis=None)
    assert (here.root / "scale" / "scale.svg").exists()
    seeds = pd.read_csv(here.root / "scale" / "seeds.csv")
    assert seeds["data_seed"].tolist() == [4, 5]
    assert (seeds["foscttm"] < 0.02).all()
    assert "branch    n = 200      right 100%" in said
    assert "start 0: ok" not in table_of(here, ASKED)[1]  # nothing is fitted again


@pytest.mark.skipif(importlib.util.find_spec("ot") is not None, reason="POT is installed")
def test_what_is_absent_is_named_and_not_tried_again(here):
    table, _ = table_of(here, ASKED)
    absent = table[table["method"] == "quantised-gw"]
    assert absent["status"].tolist() == ["missing_dependency", "skipped", "skipped", "skipped"]
    assert "pip install 'mmdma-benchmark[peers]'" in absent["detail"].iloc[0]
    assert absent["detail"].iloc[-1] == "missing_dependency at n = 200, start 0"


def test_all_variants_are_judged_by_the_same_loss(here):
    """At the same parameters the loss of `primal`'s fit is that of the exact variant, and so of primal-fourier's."""
    table, _ = table_of(here, ASKED | {"n_epochs": 1})
    losses = table[table["n"] == 200].pivot(index="start", columns="method", values="loss")
    assert losses["primal"].to_numpy() == pytest.approx(losses["primal-fourier"].to_numpy(), rel=0.2)


def test_a_fit_that_takes_too_long_ends(here):
    table, _ = table_of(
        here, ASKED | {"n": [200], "n_epochs": 10**6, "fit_timeout_s": 3, "variants": ["primal-fourier"]}
    )
    starts = table[table["method"] == "primal-fourier"]
    assert starts["status"].tolist() == ["timeout", "skipped"]


def test_another_question_is_fitted_anew(here):
    table_of(here, ASKED)
    path = here.root / "scale" / "start0" / "records" / "primal-fourier" / "p10" / "n200.json"
    before = json.loads(path.read_text())["key"]
    table_of(here, ASKED | {"n_epochs": 6})
    assert json.loads(path.read_text())["key"] != before


def test_a_variant_of_the_dual_is_refused(here):
    with pytest.raises(ConfigError, match="'dual' has no weights of features"):
        scale.run(here, CONFIG | {"scale": ASKED | {"variants": ["dual"]}})


def test_a_setting_that_cannot_be_is_named(here):
    with pytest.raises(ConfigError, match=r"scale\.settings: sigma must be"):
        scale.run(here, CONFIG | {"scale": ASKED | {"settings": {"sigma": -1}}})


@pytest.mark.parametrize(("device", "few", "batch"), [("cpu", 304, 152), ("cuda", 100_000, 20_000)])
def test_what_compiles_before_the_clock_starts_is_a_small_fit_of_the_same_kind(monkeypatch, device, few, batch):
    """Of the sizes of a cell's first start: on CUDA the tiles of the problem itself; in batches if the fit is."""
    fitted = []
    monkeypatch.setattr(fits, "_fitted", lambda cell, x, y, updates: fitted.append((cell.batch_size, *x.shape)))
    asked = fits.Fit("", 10**6, 50, "", (), *([None] * 8), method="primal-fourier", batch_size=20_000)
    for n in (10**6, 200):
        fits._fit_few(dataclasses.replace(asked, n=n, device=device))
    assert fitted == [(batch, few, 50), (None, 200, 50)]
