"""The machine's limit for a pass over pairs, and the fraction of it that is reached."""

import re
import sys

import torch

from benchmarks import limit, rates_cpu


def test_the_fraction_reached_is_that_of_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limit", "--n", "2000", "--d", "4"])
    limit.main()
    said = capsys.readouterr().out
    most, reached = (float(re.search(rf"{word}: +([\d.e+]+) pairs/s", said)[1]) for word in ("limit", "reached"))
    assert int(re.search(r"(\d+)%", said)[1]) == round(100 * reached / most)
    assert 0.05 < reached / most < 1


def test_the_rates_are_of_work_that_is_done(monkeypatch):
    """Half the work takes about half the time: nothing was optimised away."""
    rates_cpu.multiply_adds()
    whole = limit._rate(rates_cpu.multiply_adds)
    monkeypatch.setattr(rates_cpu, "_REPEATS", rates_cpu._REPEATS // 4)
    assert 0.5 < limit._rate(rates_cpu.multiply_adds) / whole < 2
    assert whole < 64e9 * torch.get_num_threads() * 2  # two 16-lane units at 4 GHz
