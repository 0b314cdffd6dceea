#!/bin/sh
# One fit on two nodes behind Slurm: sbatch examples/two_nodes.sh --x x.npy --y y.npy --variant primal-fourier --out matched
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
# With a GPU for each task: --gpus-per-task=1 above, and LOCAL_RANK=0 below, since a task sees its own alone.

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR="${MASTER_ADDR:-$first}" MASTER_PORT="${MASTER_PORT:-29500}" WORLD_SIZE="$SLURM_NTASKS"
exec srun --kill-on-bad-exit=1 sh -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python -m mmdma_core fit "$@"' fit "$@"
