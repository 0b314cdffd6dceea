"""Matching SNARE-seq: python examples/match_snareseq.py DATA (its output is beside this file).

DATA/snareseq holds chromatin accessibility and expression of the same 1,047 cells, as SCOT distributes them. Row i of
one is row i of the other, which MMDMA is not told: the truth serves the metrics alone.
"""

import sys
from pathlib import Path

import numpy as np

from mmdma_core import MMDMA, LossTerms, Run, io, metrics

folder = Path(sys.argv[1]) / "snareseq"
x, y = (io.read_view(folder / f"SNAREseq_{name}_feat.npy").matrix for name in ("atac", "rna"))
types_x, types_y = (io.read_vector(folder / f"SNAREseq_{name}_types.txt", "types") for name in ("atac", "rna"))
truth = np.arange(len(x))
print(f"accessibility {x.shape}, expression {y.shape}")

of_each_start = []


def watch(run: Run, terms: LossTerms) -> None:
    """Called whenever the loss is recorded, here at the end of each start."""
    of_each_start.append(metrics.foscttm(*run.embeddings(), truth))


model = MMDMA(l2_normalize=True, n_starts=4, random_state=0, loss_every=1000, callbacks=[watch])
e_x, e_y = model.fit_transform(x, y)

print(f"variant: {model.variant_}")
print("\nEach start, its loss, and the fraction of cells closer than the true match (FOSCTTM):")
for start, foscttm in zip(model.starts_.itertuples(), of_each_start, strict=True):
    print(f"  seed {start.seed}: loss {start.loss:.4f}, FOSCTTM {foscttm:.2f}")
print("A start that found a mirrored or rotated match has a FOSCTTM near or above 0.5. The lowest loss is kept.")

found = metrics.evaluate(e_x, e_y, truth, types_x, types_y)
print("\nThe one that is kept:")
for name, value in found.values.items():
    print(f"  {name}: {value:.2f}")
