"""Train a run: epochs with the history of its loss, early stopping, interruption, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from tqdm.auto import tqdm

from mmdma_core.files.atomic import atomically
from mmdma_core.files.formats import DAMAGED, reading
from mmdma_core.inputs import Ranks
from mmdma_core.objective import LossTerms
from mmdma_core.run import AdamRun, Run

Callback = Callable[[Run, LossTerms], object]  # called whenever the loss is recorded but for the start


@dataclass
class History:
    """What training recorded.

    epochs, losses  the loss and its terms at some epochs, the first and the last among them
    stopped         why training ended before its last epoch: 'converged', 'interrupted', or None
    best            the parameters of the lowest recorded loss, copies; theta_x and theta_y
    """

    epochs: list[int] = field(default_factory=list)
    losses: list[LossTerms] = field(default_factory=list)
    stopped: str | None = None
    best: tuple[torch.Tensor, ...] = ()

    def record(self, run: Run) -> LossTerms:
        """Record the loss of the run now. Raises FloatingPointError if it is no number."""
        terms = run.loss()
        if not math.isfinite(terms.total):
            raise FloatingPointError(
                f"the loss is {terms.total} after {run.epoch} epochs ({terms}): lower learning_rate, or scale the data"
            )
        if not self.losses or terms.total < min(loss.total for loss in self.losses):
            self.best = tuple(parameter.detach().clone() for parameter in run.parameters)
        self.epochs.append(run.epoch)
        self.losses.append(terms)
        return terms


@dataclass(frozen=True)
class Stopping:
    """Early stopping as in the published package: by the mean loss of two windows that follow each other.

    Training ends when |m1 - m2| < tolerance max(|m1|, 1), with m1 and m2 the means of the recorded losses of the
    last but one and the last `window` epochs. window = 0: never.
    """

    window: int = 0
    tolerance: float = 1e-3

    def holds(self, history: History) -> bool:
        now = history.epochs[-1]
        if self.window == 0 or now < 2 * self.window:
            return False
        totals = [(now - epoch, loss.total) for epoch, loss in zip(history.epochs, history.losses, strict=True)]
        after = [total for age, total in totals if age < self.window]
        before = [total for age, total in totals if self.window <= age < 2 * self.window]
        if not before:  # a checkpoint may have been written with wider gaps
            return False
        after, before = fmean(after), fmean(before)
        return abs(before - after) < self.tolerance * max(abs(before), 1.0)


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run's state and history, so that training goes on to the same numbers.

    question  what the state is for (data, settings, variant): a checkpoint of another question is refused

    Of ranks that share a run the first one writes and reads it, so that another number of them can go on.
    """

    path: Path
    question: str

    def write(self, run: AdamRun, history: History) -> None:
        if run.ranks.rank > 0:
            return
        state = run.state()
        told = {"question": self.question, "epoch": state["epoch"], "epochs": history.epochs}
        arrays = {f"state{k}": tensor.numpy() for k, tensor in enumerate(state["tensors"])}
        arrays |= {f"best{k}": tensor.cpu().numpy() for k, tensor in enumerate(history.best)}
        with atomically(self.path) as part, part.open("wb") as file:
            np.savez(file, told=json.dumps(told), losses=np.array(history.losses), **arrays)

    def resume(self, run: AdamRun) -> History:
        """Return the history so far, with the run at its state; a new one if there is no file.

        Raises ValueError for a file that is no checkpoint, or that was written for another question.
        """
        history = History()
        content = run.ranks.broadcast(self._read() if run.ranks.rank == 0 else None)
        if content is None:
            return history
        epoch, epochs, arrays = content
        tensors = [torch.from_numpy(arrays[f"state{k}"]) for k in range(len(run.state()["tensors"]))]
        run.restore({"epoch": epoch, "tensors": tensors})
        history.epochs = epochs
        history.losses = [LossTerms(*map(float, row)) for row in arrays["losses"]]
        best = (torch.from_numpy(arrays[f"best{k}"]) for k in range(len(run.parameters)))
        history.best = tuple(value.to(own.device) for value, own in zip(best, run.parameters, strict=True))
        return history

    def _read(self) -> tuple[int, list[int], dict[str, np.ndarray]] | None:
        """Return epoch, recorded epochs, and all arrays; None without a file."""
        if not self.path.exists():
            return None
        with reading(self.path, "a checkpoint", *DAMAGED), np.load(self.path, allow_pickle=False) as file:
            told = json.loads(str(file["told"]))
            question, epoch, epochs = told["question"], told["epoch"], told["epochs"]
            arrays = {name: file[name] for name in file.files if name != "told"}
        if question != self.question:
            raise ValueError(f"{self.path} was written for other data, settings or seeds; remove it or name another")
        return epoch, epochs, arrays


def train(
    run: Run,
    n_epochs: int,
    *,
    loss_every: int = 10,
    stopping: Stopping = Stopping(),
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    description: str = "MMD-MA",
) -> History:
    """Train the run up to its epoch `n_epochs`, and record the loss every `loss_every` epochs, first and last included.

    progress    a bar with the loss (tqdm)
    checkpoint  gone on from if its file exists, and written whenever the loss is recorded

    Ctrl-C ends training: the history says so and holds the best parameters; it passes through before the first loss,
    and where ranks share the run, which it reaches at different epochs.
    Raises FloatingPointError if the loss is no number.
    """
    history = checkpoint.resume(run) if checkpoint else History()
    with tqdm(total=n_epochs, initial=run.epoch, desc=description, unit="epoch", disable=not progress) as bar:
        try:
            if not history.epochs:
                history.record(run)
            while run.epoch < n_epochs and not stopping.holds(history):
                until = min(n_epochs, (run.epoch // loss_every + 1) * loss_every)
                while run.epoch < until:
                    run.step()
                    bar.update()
                terms = history.record(run)
                bar.set_postfix(loss=f"{terms.total:.4g}")
                if checkpoint:
                    checkpoint.write(run, history)
                for callback in callbacks:
                    callback(run, terms)
        except KeyboardInterrupt:
            if not history.epochs or getattr(run, "ranks", Ranks()).size > 1:  # nothing to keep that all ranks agree on
                raise
            history.stopped = "interrupted"
    if history.stopped is None and run.epoch < n_epochs:
        history.stopped = "converged"
    return history
