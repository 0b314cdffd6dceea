"""Counts of 10x as CellRanger writes them: folders and .h5 files, of version 2 and 3."""

import gzip

import h5py
import numpy as np
import scipy.sparse

GENES, PROTEINS = "Gene Expression", "Antibody Capture"


def write_lines(path, lines):
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text, 1) if path.suffix == ".gz" else text)


def write_folder(folder, counts, cells, ids, types, version=3, prefix=""):
    """counts: (cells, features), sparse."""
    folder.mkdir(exist_ok=True)
    end = ".gz" if version == 3 else ""
    table = "features.tsv.gz" if version == 3 else "genes.tsv"
    entries = scipy.sparse.coo_array(counts)
    head = ["%%MatrixMarket matrix coordinate integer general", '%metadata_json: {"software_version": "test"}']
    sizes = f"{counts.shape[1]} {counts.shape[0]} {entries.nnz}"
    rows = (f"{j + 1} {i + 1} {int(v)}" for i, j, v in zip(entries.row, entries.col, entries.data, strict=True))
    write_lines(folder / f"{prefix}matrix.mtx{end}", [*head, sizes, *rows])
    write_lines(folder / f"{prefix}barcodes.tsv{end}", cells)
    of_three = zip(ids, types, strict=True)
    write_lines(
        folder / f"{prefix}{table}",
        [f"{i}\tsymbol\t{t}" if version == 3 else f"{i}\tsymbol" for i, t in of_three],
    )
    return folder


def write_h5(path, counts, cells, ids, types, version=3, genome="GRCh38"):
    counts = scipy.sparse.csr_array(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else genome)
        group["data"], group["indices"] = counts.data.astype(np.int32), counts.indices.astype(np.int64)
        group["indptr"], group["shape"] = counts.indptr.astype(np.int64), np.array(counts.shape[::-1], np.int32)
        group["barcodes"] = np.array(cells, "S")
        if version == 2:
            group["genes"], group["gene_names"] = np.array(ids, "S"), np.array(["symbol"] * len(ids), "S")
        else:
            group["features/id"], group["features/feature_type"] = np.array(ids, "S"), np.array(types, "S")
            group["features/name"] = np.array(["symbol"] * len(ids), "S")
            group["features/genome"] = np.array([genome] * len(ids), "S")
    return path
