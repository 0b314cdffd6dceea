"""A reading of the scaling study: python examples/read_study.py results/MACHINE (its output is beside this file)."""

import sys
from pathlib import Path

import pandas as pd

from benchmarks.analysis import table

root = Path(sys.argv[1])
cells = table.read_summary(root)
print(f"{len(cells)} cells of {cells['variant'].nunique()} variants, measured on {cells['cpu'].iloc[0]}")

print("\nHow they ended:")
print(table.count_statuses(cells))

ok = cells[cells["status"] == "ok"]
paper = ok[ok["variant"].isin(["primal", "primal-keops", "dual", "dual-keops"])]
print("\nThe fastest of the paper's four variants, for n (down) and p (across):")
fastest = paper.loc[paper.groupby(["n", "p"])["runtime_s"].idxmin()]
print(fastest.pivot(index="n", columns="p", values="variant").to_string())

print("\nHow many times faster the fastest of the fused variants is than that:")
fused = ok[ok["variant"].str.endswith("-fused")].groupby(["n", "p"])["runtime_s"].min()
ratio = (paper.groupby(["n", "p"])["runtime_s"].min() / fused).round(1)
print(ratio.unstack("p").to_string())

print("\nSeconds for 500 epochs at the largest n, where memory sufficed:")
largest = ok[ok["n"] == ok["n"].max()]
print(largest.pivot(index="variant", columns="p", values="runtime_s").round(1).to_string(na_rep="-"))

print("\nHost memory above the start, in MiB, at the largest n:")
mebibytes = (largest["peak_host_bytes"] / 2**20).round().astype("Int64")
print(largest.assign(mib=mebibytes).pivot(index="variant", columns="p", values="mib").to_string(na_rep="-"))

losses = pd.read_csv(root / "losses.csv")
print("\nWhich variants have the same loss after 3 epochs, at the largest n:")
for cell in losses[losses["n"] == losses["n"].max()].itertuples():
    print(f"p = {cell.p}: {cell.agree}")
