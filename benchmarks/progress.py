"""Sweeps in a terminal: one line for each finished cell, a bar over those that remain, the time left."""

from __future__ import annotations

import sys

from tqdm import tqdm

from benchmarks.measuring.records import Record
from benchmarks.plan import Plan, duration
from mmdma_core.models import in_words

tqdm.monitor_interval = 0  # no monitor thread: this process forks


class Progress:
    """The lines go to stdout, the bar to stderr, where it is shown in a terminal only."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bar = tqdm(
            total=plan.total,
            initial=len(plan.known),
            disable=None,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} cells |{bar}|{postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def finished(self, record: Record) -> None:
        """A cell has ended."""
        self._plan.add(record)
        self._bar.n = min(len(self._plan.known), self._plan.total)
        self._bar.set_postfix_str(f"about {duration(self._plan.seconds_left())} left", refresh=True)
        tqdm.write(line(record), file=sys.stdout)
        sys.stdout.flush()


def line(record: Record) -> str:
    """A finished cell in one line: status, seconds per epoch, memory."""
    point = f"{record.variant:<24} n = {record.n:<8} p = {record.p:<6} {record.status:<8}"
    if record.status != "ok":
        return f"{point} {record.detail.splitlines()[-1] if record.detail else ''}"
    held = record.peak_host_bytes if record.peak_device_bytes is None else record.peak_device_bytes
    how = "extrapolated" if record.extrapolated else "measured"
    return (
        f"{point} {record.median_epoch_s:10.3e} s/epoch  {in_words(held):>10}"
        f"  {record.epochs} epochs: {record.runtime_s:9.3g} s ({how})"
    )
