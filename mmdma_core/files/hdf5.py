"""HDF5: the packages that its files need, and the filters that it lacks itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from mmdma_core.errors import MissingDependency


@contextmanager
def hdf5_filters(path: Path, file: Path) -> Iterator[None]:
    """Read an HDF5 file with the filters of hdf5plugin, where that is installed.

    path is what errors call the file. A ValueError becomes a MissingDependency that names the filter, if the file has
    one that is not there.
    """
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")  # registers them
    try:
        yield
    except ValueError:
        lacking = _lacking(file)
        if lacking:
            raise MissingDependency(f"{path} needs a filter of HDF5: {lacking}: pip install hdf5plugin") from None
        raise


def _lacking(file: Path) -> str | None:
    """The first dataset with a filter that HDF5 does not have here, and which; None: there is none."""
    import h5py

    def look(name: str, item: object) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        created = item.id.get_create_plist()
        for k in range(created.get_nfilters()):
            number, _, _, called = created.get_filter(k)
            if not h5py.h5z.filter_avail(number):
                title = called.decode(errors="replace").partition(";")[0] or "no name"
                return f"{name} is packed by filter {number} ({title})"
        return None

    with suppress(OSError, RuntimeError, KeyError), h5py.File(file, "r") as opened:  # damaged in another way
        return opened.visititems(look)
    return None


def package(name: str, path: Path) -> ModuleType:
    """The package that a file needs. Raises MissingDependency."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{path} needs {error.name}: pip install 'mmdma-benchmark[anndata]'") from error
