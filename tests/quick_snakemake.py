"""Snakemake, which asks Slurm how its jobs are twice a second: by itself it waits ten seconds longer each time.

python tests/quick_snakemake.py ARGUMENTS, as `snakemake ARGUMENTS`
"""

import asyncio

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor


async def wait_shortly(executor):
    await asyncio.sleep(0.5)


RemoteExecutor.sleep = wait_shortly

if __name__ == "__main__":
    main()
