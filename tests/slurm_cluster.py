"""A real Slurm on loopback, for the tests: a controller, some nodes of this machine under other names, fake GPUs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "unshare", "sbatch")
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=600
KillWait=2
GresTypes=gpu
SlurmdParameters=config_overrides
DefMemPerCPU=1000
"""
_CGROUP = """
CgroupPlugin=cgroup/v{version}
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
"""


def absent() -> str | None:
    """None if all that a cluster needs is installed, else what to install."""
    programs = [name for name in _PROGRAMS if _found(name) is None]
    if programs:
        return f"needs {', '.join(programs)}: apt-get install slurm-wlm munge"
    plugin = importlib.util.find_spec("snakemake_executor_plugin_slurm")
    return None if plugin else "needs Snakemake's executor: pip install '.[slurm]'"


def refused() -> str | None:
    """None if this user may start a cluster on this machine, else why not."""
    if os.geteuid() != 0:
        return "needs root, for nodes of other names on one machine"
    tried = subprocess.run(["unshare", "--uts", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"needs `unshare --uts`: {tried.stderr.strip()}"
    memory = Path("/sys/fs/cgroup/memory")
    groups = memory if memory.is_dir() else Path("/sys/fs/cgroup")
    return None if os.access(groups, os.W_OK) else f"needs to make control groups in {groups}"


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def running(folder: Path, nodes: dict[str, int], cpus: int = 2, memory_mb: int = 4000) -> Iterator[dict[str, str]]:
    """The environment of a cluster's users: the partition `gpu` has the nodes, each with so many fake GPUs."""
    for name in ("state", "spool", "tmp", *(f"spool/{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    for k in range(max(nodes.values())):
        os.mknod(folder / f"gpu{k}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    _write_configuration(folder, nodes, cpus, memory_mb)
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "TMPDIR": str(folder / "tmp"),  # what a job that is killed leaves behind lies here
        "PATH": f"{_srun(folder).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with ExitStack() as stack:
        _start_munge(stack, folder)
        _start(stack, [_found("slurmctld"), "-D", "-c"], environment, folder / "slurmctld.out")
        for node in nodes:
            named = f"hostname {node} && exec {_found('slurmd')} -D -N {node}"
            _start(stack, ["unshare", "--uts", "sh", "-c", named], environment, folder / f"slurmd.{node}.out")
        _wait_for_nodes(len(nodes), environment, folder)
        stack.callback(subprocess.run, ["scancel", "--full", "-u", "root"], env=environment, check=False)
        yield environment


def _write_configuration(folder: Path, nodes: dict[str, int], cpus: int, memory_mb: int) -> None:
    lines, gres = [_CONF.format(host=socket.gethostname(), port=_free_port(), folder=folder)], []
    for node, gpus in nodes.items():
        lines.append(
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={cpus} "
            f"RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN"
        )
        files = f"[0-{gpus - 1}]" if gpus > 1 else "0"
        gres.append(f"NodeName={node} Name=gpu File={folder}/gpu{files}")
    lines.append(f"PartitionName=gpu Nodes={','.join(nodes)} Default=YES MaxTime=01:00:00 State=UP")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")
    version = 1 if Path("/sys/fs/cgroup/memory").is_dir() else 2
    alone = "IgnoreSystemd=yes\n" if version == 2 else ""  # there is none in a container
    (folder / "cgroup.conf").write_text(_CGROUP.format(version=version) + alone)


def _srun(folder: Path) -> Path:
    """One that finds this cluster, whose configuration is not where Slurm looks; Snakemake takes its environment."""
    path = folder / "bin" / "srun"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {_found("srun")} "$@"\n')
    path.chmod(0o755)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start_munge(stack: ExitStack, folder: Path) -> None:
    key = folder / "munge.key"
    subprocess.run([_found("mungekey"), "--create", f"--keyfile={key}"], check=True)
    files = [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    command = [_found("munged"), "--force", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    _start(stack, [*command, *files], dict(os.environ), folder / "munged.out")
    _wait(lambda: (folder / "munge.socket").exists(), 10, folder / "munged.out")


def _start(stack: ExitStack, command: list[str], environment: dict[str, str], log: Path) -> None:
    with log.open("w") as output:
        daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    stack.callback(_stop, daemon)


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _wait_for_nodes(count: int, environment: dict[str, str], folder: Path) -> None:
    def idle() -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-t", "idle", "-o", "%D"], env=environment, capture_output=True, text=True
        )
        return sum(map(int, done.stdout.split())) == count

    _wait(idle, 30, folder / "slurmctld.log")


def _wait(condition, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"the cluster did not start: {log.read_text()[-2000:] if log.exists() else log}")
        time.sleep(0.1)
