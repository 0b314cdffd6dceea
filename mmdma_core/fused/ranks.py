"""The rows of a view that this process holds, and what it must know of the others': the one place that has ranks.

A rank is a process of a torch.distributed group. Each holds some rows of both views, rank 0 the first, and all of the
parameters. `Rows` is the form of a single process: it holds all rows, and every sum over ranks is what was given.
`SharedRows` is the form of a group. What computes calls these methods and asks nowhere how many ranks there are.

Sums run in float64. A term that every rank computes for itself enters a sum times `share`, so that all ranks end with
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from mmdma_core.inputs import Array, Rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

around: Callable[[], Any] = nullcontext  # entered around each wait for the others: who watches ranks counts them there


class SharedRows(Rows):
    """This rank's rows of a view whose rows all ranks of a group hold; made by all of them at once."""

    def __init__(self, own: int, group: ProcessGroup, device: torch.device) -> None:
        self._group, self._device = group, device
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.share = 1 / self.size
        counts = torch.zeros(self.size, dtype=torch.int64, device=device)
        counts[self.rank] = own
        with around():
            distributed.all_reduce(counts, group=group)
        self._counts = counts.tolist()
        self._firsts = [sum(self._counts[:rank]) for rank in range(self.size)]
        super().__init__(sum(self._counts))
        self.first, self.own = self._firsts[self.rank], own

    def taken(self, rows: np.ndarray) -> np.ndarray:
        low, high = np.searchsorted(rows, (self.first, self.first + self.own))
        return rows[low:high] - self.first

    def sum(self, values: Array) -> Array:
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        there = tensor.to(self._device)  # of a group of GPUs alone
        with around():
            distributed.all_reduce(there, group=self._group)
        if there is not tensor:
            tensor.copy_(there)
        return values

    def sum_of_graph(self, values: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(values, self)

    def sum_of_sparse(self, matrix: torch.Tensor) -> torch.Tensor:
        return self.sum(matrix.to_dense())

    def of_first(self, value: Any) -> Any:
        values = [value]
        with around():
            distributed.broadcast_object_list(values, group=self._group, group_src=0, device=self._device)
        return values[0]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        whole = rows.new_empty(self.n, *rows.shape[1:])
        whole[self.first : self.first + self.own] = rows
        self._each(lambda rank, part: distributed.broadcast(part, **self._at("src", rank)), whole)
        return whole

    def to_first(self, rows: torch.Tensor) -> torch.Tensor:
        with around():
            if self.rank > 0:
                distributed.send(rows.to(self._device).contiguous(), group=self._group, group_dst=0)
                return rows
            parts = [rows]
            for rank in range(1, self.size):
                part = torch.empty(self._counts[rank], *rows.shape[1:], dtype=rows.dtype, device=self._device)
                distributed.recv(part, group=self._group, group_src=rank)
                parts.append(part.to(rows.device))
            return torch.cat(parts)

    def room(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_empty(self.n, *rows.shape[1:])

    def give(self, part: torch.Tensor, rows: torch.Tensor) -> None:
        whole = part.double()
        self._each(lambda rank, part: distributed.reduce(part, **self._at("dst", rank)), whole)
        rows.copy_(whole[self.first : self.first + self.own])

    def others(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        for rank in range(self.size):
            held = self._csr_of(rows, rank) if rows.layout == torch.sparse_csr else self._dense_of(rows, rank)
            if rank != self.rank and (rank < self.rank) == ((rank + self.rank) % 2 == 0):
                yield held

    def _dense_of(self, rows: torch.Tensor, rank: int) -> torch.Tensor:
        held = rows.contiguous() if rank == self.rank else rows.new_empty(self._counts[rank], rows.shape[1])
        self._broadcast(held, rank)
        return held

    def _csr_of(self, rows: torch.Tensor, rank: int) -> torch.Tensor:
        count = torch.tensor([len(rows.values())], device=rows.device)
        self._broadcast(count, rank)
        parts = [rows.crow_indices(), rows.col_indices(), rows.values()]
        if rank != self.rank:
            sizes = self._counts[rank] + 1, int(count), int(count)
            parts = [part.new_empty(size) for part, size in zip(parts, sizes, strict=True)]
        for part in parts:
            self._broadcast(part, rank)
        size = self._counts[rank], rows.shape[1]
        return rows if rank == self.rank else torch.sparse_csr_tensor(*parts, size=size, check_invariants=False)

    def _broadcast(self, tensor: torch.Tensor, rank: int) -> None:
        with around():
            distributed.broadcast(tensor, group=self._group, group_src=rank)

    def _at(self, end: str, rank: int) -> dict[str, Any]:
        return {"group": self._group, f"group_{end}": rank, "async_op": True}

    def _each(self, begin: Callable[[int, torch.Tensor], Any], whole: torch.Tensor) -> None:
        """Begin an operation on the rows of each rank, and wait for all."""
        with around():
            works = [begin(rank, part) for rank, part in enumerate(whole.split(self._counts))]
            for work in works:
                work.wait()


class _Sum(torch.autograd.Function):
    """The sum over ranks; backwards the gradient as it is, which is that of this rank's term."""

    @staticmethod
    def forward(ctx, values: torch.Tensor, rows: SharedRows) -> torch.Tensor:  # noqa: ANN001
        return rows.sum(values.clone())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN001
        return gradient, None


def world() -> ProcessGroup | None:
    """The group of all processes that were started together, where there are several and they have joined."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.group.WORLD if ready and distributed.get_world_size() > 1 else None


def in_world(own: int) -> Rows:
    """The rows of a matrix in the host's memory of which so many are here, over all processes."""
    backend = distributed.get_backend_config() if world() else ""
    return shared(own, world(), torch.device("cpu" if "gloo" in backend else "cuda"))


def shared(own: int, group: ProcessGroup | None, device: torch.device) -> Rows:
    """The rows of a view of which so many are here: all of them without a group, or where it has one rank."""
    if group is None or distributed.get_world_size(group) == 1:
        return Rows(own)
    return SharedRows(own, group, device)
