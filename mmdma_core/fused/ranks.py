"""The ranks of a torch.distributed group: sums over them, rows that they exchange, and their waits for each other."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from mmdma_core.inputs import Array, Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class GroupRanks(Ranks):
    """The ranks of a group, see mmdma_core.inputs.Ranks; all of them make it, and call its methods, at once.

    waits  how many waits for other ranks this process has begun and how many have ended, in memory that it shares with
           its forks: a watcher of the process sees by it where a rank hangs
    """

    waits = memoryview(mmap.mmap(-1, 16)).cast("q")

    def __init__(self, group: ProcessGroup, device: torch.device, own: int | None = None) -> None:
        super().__init__(own)
        self.group, self._device = group, device
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        if own is None:
            return
        counts = torch.zeros(self.size, dtype=torch.int64, device=device)
        counts[self.rank] = own
        self._counts = self.sum(counts).tolist()
        self.n, self.first = sum(self._counts), sum(self._counts[: self.rank])

    def local(self, rows: np.ndarray) -> np.ndarray:
        low, high = np.searchsorted(rows, (self.first, self.first + self.own))
        return rows[low:high] - self.first

    def sum(self, values: Array) -> Array:
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        there = tensor.to(self._device)  # of a group of GPUs alone
        with self._waiting():
            distributed.all_reduce(there, group=self.group)
        if there is not tensor:
            tensor.copy_(there)
        return values

    def sum_with_gradient(self, values: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(values, self)

    def sum_of_sparse(self, matrix: torch.Tensor) -> torch.Tensor:
        return self.sum(matrix.to_dense())

    def broadcast(self, value: Any) -> Any:
        values = [value]
        with self._waiting():
            distributed.broadcast_object_list(values, group=self.group, group_src=0, device=self._device)
        return values[0]

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        whole = self.whole(rows)
        whole[self.first : self.first + self.own] = rows
        self._for_each_rank(distributed.broadcast, "group_src", whole)
        return whole

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        with self._waiting():
            if self.rank > 0:
                distributed.send(rows.to(self._device).contiguous(), group=self.group, group_dst=0)
                return rows
            parts = [rows]
            for rank in range(1, self.size):
                part = torch.empty(self._counts[rank], *rows.shape[1:], dtype=rows.dtype, device=self._device)
                distributed.recv(part, group=self.group, group_src=rank)
                parts.append(part.to(rows.device))
            return torch.cat(parts)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_empty(self.n, *rows.shape[1:])

    def reduce_scatter(self, term: torch.Tensor, rows: torch.Tensor) -> None:
        whole = term.double()
        self._for_each_rank(distributed.reduce, "group_dst", whole)
        rows.copy_(whole[self.first : self.first + self.own])

    def others(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        sparse = rows.layout == torch.sparse_csr
        own = [rows.crow_indices(), rows.col_indices(), rows.values()] if sparse else [rows.contiguous()]
        for rank, n in enumerate(self._counts):
            shapes = [(n, rows.shape[1])]
            if sparse:
                count = torch.tensor([len(own[2])], device=rows.device)
                self._broadcast_from(rank, count)
                shapes = [(n + 1,), (int(count),), (int(count),)]
            parts = own
            if rank != self.rank:
                parts = [part.new_empty(shape) for part, shape in zip(own, shapes, strict=True)]
            for part in parts:
                self._broadcast_from(rank, part)
            if rank != self.rank and (rank < self.rank) == ((rank + self.rank) % 2 == 0):
                size = n, rows.shape[1]
                yield torch.sparse_csr_tensor(*parts, size=size, check_invariants=False) if sparse else parts[0]

    def _broadcast_from(self, rank: int, tensor: torch.Tensor) -> None:
        with self._waiting():
            distributed.broadcast(tensor, group=self.group, group_src=rank)

    def _for_each_rank(self, operation: Callable[..., Any], end: str, whole: torch.Tensor) -> None:
        """Begin an operation, from or to (`end`) each rank, on its rows of the whole, and wait for all."""
        with self._waiting():
            parts = enumerate(whole.split(self._counts))
            works = [operation(part, group=self.group, async_op=True, **{end: rank}) for rank, part in parts]
            for work in works:
                work.wait()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits[0] += 1
        yield
        self.waits[1] += 1  # not after a failure, which the others may be the reason of


class _Sum(torch.autograd.Function):
    """The sum over ranks; backwards the gradient as it is, which is that of this rank's term."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, ranks: GroupRanks) -> torch.Tensor:  # noqa: ANN001
        return ranks.sum(values.clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN001
        return gradient, None


def world(own: int | None = None) -> Ranks:
    """Return all processes that were started together and have joined, with so many rows in the host's memory here.

    None: with no view, of which then nothing is counted.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks(own)
    backend = distributed.get_backend_config()
    return ranks_of(distributed.group.WORLD, torch.device("cpu" if "gloo" in backend else "cuda"), own)


def ranks_of(group: ProcessGroup | None, device: torch.device, own: int | None) -> Ranks:
    """Return the ranks of a group, with so many rows of a view here; a single process without a group."""
    if group is None or distributed.get_world_size(group) == 1:
        return Ranks(own)
    return GroupRanks(group, device, own)
