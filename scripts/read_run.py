#!/usr/bin/env python3
"""Reads a run of moebench with polars or with pandas, whichever is there, and holds its samples against summary.csv.

    python3 scripts/read_run.py results/latest

Every `# %%` begins a cell of a notebook. Columns: results/SCHEMA.md. pandas needs pyarrow beside it.
"""
# %% Where the run is, and which columns this example knows
import json
import sys
from pathlib import Path

run = Path(sys.argv[1] if len(sys.argv) > 1 else "results/latest")
KNOWN = 5
stated = json.loads((run / "run.json").read_text())
assert stated["schema_version"] <= KNOWN, f"run.json: columns of version {stated['schema_version']}, known: {KNOWN}"
suite = stated["suite"]
warmup, baseline = suite["warmup"], suite["baseline"]


# %% What both have in common: a mean is over whole placement periods of each seed after warm-up, of all where there is none
def counted(rows, period):
    whole = rows // max(period, 1) * max(period, 1)
    return whole or rows


def show(name, means):
    """means: (case, system) -> seconds"""
    print(f"\n{name}")
    for (case, system), mean in means.items():
        over = means.get((case, baseline))
        speedup = f"{over / mean:6.2f}x over {baseline}, by means" if over else ""
        print(f"  {case:40} {system:14} {mean * 1e3:10.1f} ms {speedup}")


# %% With polars
def with_polars():
    import polars as pl

    path = run / "iterations.parquet"
    assert int(pl.read_parquet_metadata(path).get("moebench_schema_version", "0")) <= KNOWN
    rows = pl.read_parquet(path)
    failed = rows.filter(pl.col("status") != "ok").select("case", "system")
    good = rows.join(failed, on=["case", "system"], how="anti").filter(pl.col("iteration") > warmup)
    means = {}
    for (case, system), of_run in good.group_by("case", "system", maintain_order=True):
        period = of_run["placement_every"][0] or 0
        seeds = [of_seed["step_s"] for _, of_seed in of_run.group_by("seed", maintain_order=True)]
        kept = pl.concat([steps.head(counted(len(steps), period)) for steps in seeds])
        means[case, system] = kept.mean()
    written = pl.read_csv(run / "summary.csv").drop_nulls("mean_step_s")
    return means, {(row["case"], row["system"]): row["mean_step_s"] for row in written.iter_rows(named=True)}


# %% With pandas
def with_pandas():
    import pandas as pd
    import pyarrow.parquet as pq

    path = run / "iterations.parquet"
    assert int((pq.read_metadata(path).metadata or {}).get(b"moebench_schema_version", b"0")) <= KNOWN
    rows = pd.read_parquet(path)
    bad = rows.groupby(["case", "system"])["status"].transform(lambda status: (status != "ok").any())
    good = rows[~bad & (rows["iteration"] > warmup)]
    means = {}
    for (case, system), of_run in good.groupby(["case", "system"], sort=False):
        period = of_run["placement_every"].iloc[0]
        period = 0 if pd.isna(period) else int(period)
        seeds = [of_seed["step_s"] for _, of_seed in of_run.groupby("seed", sort=False)]
        kept = pd.concat([steps.head(counted(len(steps), period)) for steps in seeds])
        means[case, system] = kept.mean()
    written = pd.read_csv(run / "summary.csv").dropna(subset=["mean_step_s"])
    return means, {(row.case, row.system): row.mean_step_s for row in written.itertuples()}


# %% Both, as far as they are installed
tried = 0
for name, read in [("polars", with_polars), ("pandas", with_pandas)]:
    try:
        means, written = read()
    except ModuleNotFoundError as error:
        print(f"{name}: not tried: {error}")
        continue
    show(name, means)
    assert means.keys() == written.keys(), f"{name}: {means.keys() ^ written.keys()}"
    worst = max(abs(means[run_of] / written[run_of] - 1) for run_of in means)
    assert worst < 1e-9, f"{name}: {worst} away from summary.csv"
    print(f"{name}: {len(means)} means agree with summary.csv")
    tried += 1
sys.exit(0 if tried else "neither polars nor pandas with pyarrow is installed")
