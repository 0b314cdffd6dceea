"""Matching SNARE-seq: python examples/match_snareseq.py DATA (its output is beside this file).

DATA/snareseq holds chromatin accessibility and expression of the same 1,047 cells, as SCOT distributes them. Row i of
one is row i of the other, which MMDMA is not told: the truth serves the metrics alone.
"""

import sys
from pathlib import Path

import numpy as np

from mmdma_core import MMDMA, io, metrics

folder = Path(sys.argv[1]) / "snareseq"
x, y = (io.read_view(folder / f"SNAREseq_{name}_feat.npy").matrix for name in ("atac", "rna"))
types_x, types_y = (io.read_vector(folder / f"SNAREseq_{name}_types.txt", "types") for name in ("atac", "rna"))
truth = np.arange(len(x))
print(f"accessibility {x.shape}, expression {y.shape}")

model = MMDMA(n_starts=4, random_state=0, loss_every=1000, keep_starts=True)
e_x, e_y = model.fit_transform(x, y)

print(f"variant: {model.variant_}")
print(f"rows of one length: {model.l2_normalize_}")
print(
    "\nEach start, its loss, the fraction of cells closer than the true match (FOSCTTM), and, once it is refined, the"
)
print("discrepancy of both views. Starts of one match pair the same cells.")
for start, pair in zip(model.starts_.to_dict("records"), model.start_embeddings_, strict=True):
    trained, refined = f"loss {start['loss']:.4f}", f"discrepancy {start['discrepancy']:.4f}"
    foscttm = metrics.foscttm(*pair, truth)
    print(
        f"  seed {start['seed']}, {start['from']}: {trained}, FOSCTTM {foscttm:.2f}, {refined}, match {start['match']}"
    )
print(f"chosen: seed {model.starts_['seed'][model.starts_['chosen']].item()}")
print(f"ambiguous: {model.ambiguous_}")

found = metrics.evaluate(e_x, e_y, truth, types_x, types_y)
print("\nThe one that is chosen, refined:")
for name, value in found.values.items():
    print(f"  {name}: {value:.2f}")
