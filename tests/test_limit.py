"""The machine's limit for a pass over pairs, and the fraction of it that is reached."""

import re
import sys

import pytest

from benchmarks.limit import limit


def test_the_fraction_reached_is_that_of_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limit", "--n", "2000", "--d", "4", "--runs", "1"])
    limit.main()
    said = capsys.readouterr().out
    most, reached = (float(re.search(rf"{word}: +([\d.e+]+) pairs/s", said)[1]) for word in ("limit", "reached"))
    percent = 100 * reached / most  # of numbers printed with three digits, each off by 0.5 % at most
    assert int(re.search(r"(\d+)%", said)[1]) == pytest.approx(percent, abs=0.5 + 0.01 * percent)
    assert 0.05 < reached / most < 1.5  # what else runs may meet one of the two alone


def test_the_median_of_the_runs_and_their_spread_are_said(monkeypatch, capsys):
    said = iter([(1e9, 0.04), (1e9, 0.1), (2e9, 0.05)])
    monkeypatch.setattr(limit, "_on_cpu", lambda n, d: next(said))
    monkeypatch.setattr(sys, "argv", ["limit", "--n", "4000", "--runs", "3"])
    limit.main()
    assert "6.4e+08 pairs/s at n = 4000, d = 10: 32% (32% to 80% in 3 runs)" in capsys.readouterr().out
