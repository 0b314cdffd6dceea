"""The scaling study: sweeps -> table -> figures -> report. A sweep measures one variant at one p, along n.

On one machine a job takes a variant's sweeps at all p, so that PyTorch is imported once for them. On a cluster each
sweep is a job.
"""

from benchmarks import config as configuration
from benchmarks import figures, study

for file in ("config.yaml", *workflow.overwrite_configfiles):
    configuration.mapping(Path(file))  # what Snakemake would take in silence, such as a key that stands twice

configfile: "config.yaml"

STUDY = study.load(config)
ON_A_CLUSTER = workflow.remote_exec or workflow.resource_settings.nodes is not None  # as `jobs` of a profile says
JOBS = list(STUDY.sweeps()) if ON_A_CLUSTER else [(variant, *STUDY.p) for variant in STUDY.variants]
SWEEPS = [marker for job in JOBS for marker in STUDY.wanted_markers(*job)]
OVERRIDES = configuration.overrides(config)
# Every core that Snakemake is given, so that no other job runs beside a timed cell; on a cluster those of a job.
CORES = STUDY.threads if workflow.remote_exec else workflow.resource_settings.cores or STUDY.threads
GPUS = int(STUDY.device == "cuda")
# On a cluster: of Slurm's nodes all of one, where its CPU is measured.
NODE = {} if GPUS else {"slurm_extra": "--exclusive"}


localrules: all, table, figures, page


rule all:
    input:
        SWEEPS,
        STUDY.root / "summary.csv",
        figures.paths(STUDY),
        STUDY.root / "report.html",


rule sweep:
    output:
        touch([STUDY.done_marker("{variant}", p, "{turn}") for p in (["{p}"] if ON_A_CLUSTER else STUDY.p)]),
    log:
        STUDY.root / "logs" / "{variant}" / ("p{p}.{turn}.log" if ON_A_CLUSTER else "{turn}.log"),
    wildcard_constraints:
        variant="[^/]+",
        p=r"\d+",
        turn=r"\d+",
    params:
        overrides=OVERRIDES,
        p=lambda wildcards: wildcards.get("p", STUDY.p),
    conda:
        "environment.yaml"
    threads: CORES
    resources:
        gpu=GPUS,
        runtime=STUDY.minutes_of_a_sweep,
        **NODE,
    message:
        "{wildcards.variant} at p = {params.p}"
    shell:
        "python -m benchmarks sweep {params.overrides} --variant {wildcards.variant:q} --p {params.p}"
        " | tee -i {log:q}"


rule table:
    input:
        SWEEPS,
    output:
        STUDY.root / "summary.csv",
        STUDY.root / "summary.parquet",
        STUDY.root / "losses.csv",
    log:
        STUDY.root / "logs" / "table.log",
    params:
        overrides=OVERRIDES,
    conda:
        "environment.yaml"
    message:
        "the table of all cells"
    shell:
        "python -m benchmarks table {params.overrides} | tee -i {log:q}"


rule figures:
    input:
        STUDY.root / "summary.parquet",
    output:
        report(figures.paths(STUDY), category="Figures"),
    log:
        STUDY.root / "logs" / "figures.log",
    params:
        overrides=OVERRIDES,
        shows=figures.question(STUDY),
    conda:
        "environment.yaml"
    message:
        "the figures"
    shell:
        "python -m benchmarks figures {params.overrides} | tee -i {log:q}"


rule page:
    input:
        STUDY.root / "summary.parquet",
        figures.paths(STUDY),
    output:
        STUDY.root / "report.html",
    log:
        STUDY.root / "logs" / "report.log",
    params:
        overrides=OVERRIDES,
        shows=figures.question(STUDY),
    conda:
        "environment.yaml"
    message:
        "the report"
    shell:
        "python -m benchmarks report {params.overrides} | tee -i {log:q}"


# None of the three is part of `all`. They have no output, so that they run whenever they are asked for: what is known
# is not measured again.
rule quality:
    log:
        STUDY.root / "logs" / "quality.log",
    params:
        overrides=OVERRIDES,
    conda:
        "environment.yaml"
    threads: CORES
    resources:
        gpu=GPUS,
        **NODE,
    message:
        "matching quality on real data"
    shell:
        "python -m benchmarks quality {params.overrides} | tee -i {log:q}"


rule scale:
    log:
        STUDY.root / "logs" / "scale.log",
    params:
        overrides=OVERRIDES,
    conda:
        "environment.yaml"
    threads: CORES
    resources:
        gpu=GPUS,
        **NODE,
    message:
        "quality against time, up to a million cells"
    shell:
        "python -m benchmarks scale {params.overrides} | tee -i {log:q}"


rule citeseq:
    log:
        STUDY.root / "logs" / "citeseq.log",
    params:
        overrides=OVERRIDES,
    conda:
        "environment.yaml"
    threads: CORES
    resources:
        gpu=GPUS,
        **NODE,
    message:
        "genes against proteins"
    shell:
        "python -m benchmarks citeseq {params.overrides} | tee -i {log:q}"
