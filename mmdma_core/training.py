"""Training a run: epochs, the history of its loss, early stopping, interruption, checkpoints."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from mmdma_core.files import atomically
from mmdma_core.objective import LossTerms
from mmdma_core.run import Run

Callback = Callable[[Run, LossTerms], object]  # called with the run at each epoch whose loss is recorded


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
        """Take the loss of the run now. Raises FloatingPointError if it is no number."""
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
        after = _mean(total for age, total in totals if age < self.window)
        before = _mean(total for age, total in totals if self.window <= age < 2 * self.window)
        return abs(before - after) < self.tolerance * max(abs(before), 1.0)


def _mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a run's state and history, so that training goes on to the same numbers.

    question  what the state is for (data, settings, variant): a checkpoint of another question is refused
    """

    path: Path
    question: str

    def write(self, run: Run, history: History) -> None:
        content = {
            "question": self.question,
            "state": run.state(),
            "epochs": history.epochs,
            "losses": [tuple(loss) for loss in history.losses],
            "best": [tensor.cpu() for tensor in history.best],
        }
        with atomically(self.path) as part:
            torch.save(content, part)

    def resume(self, run: Run) -> History:
        """The history so far, with the run at its state; a new one if there is no file.

        Raises ValueError for a file that is no checkpoint, or that was written for another question.
        """
        history = History()
        if not self.path.exists():
            return history
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            question = content["question"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no checkpoint of this program: {type(error).__name__}") from None
        if question != self.question:
            raise ValueError(f"{self.path} was written for other data, settings or seeds; remove it or name another")
        run.restore(content["state"])
        history.epochs = content["epochs"]
        history.losses = [LossTerms(*loss) for loss in content["losses"]]
        history.best = tuple(t.to(p.device) for t, p in zip(content["best"], run.parameters, strict=True))
        return history


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

    Ctrl-C ends training: the history says so and holds the best parameters. Raises FloatingPointError if the loss
    is no number.
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
            history.stopped = "interrupted"
    if history.stopped is None and run.epoch < n_epochs:
        history.stopped = "converged"
    return history
