#!/usr/bin/env bash
# A run on three nodes of a Slurm cluster: sbatch examples/cluster/slurm.sh qwen3-4b-lora --set cluster.replicas=8
# The first node is Ray's head and runs the driver; all see the same folder, with the virtual environment in it.
#SBATCH --job-name=solostream
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -euo pipefail
source "${VENV:-.venv}/bin/activate"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs on one node do not meet
resources=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --port="$port" --include-dashboard=false "${resources[@]}" --block &
until ray health-check --address "$head:$port" 2>/dev/null; do sleep 2; done
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" \
        ray start --address="$head:$port" "${resources[@]}" --block &
fi

# Five minutes before its time is over Slurm sends SIGTERM: the run saves a checkpoint, the job is queued again.
srun --overlap --nodes=1 --ntasks=1 -w "$head" solostream train "$@" --cluster "$head:$port" --resume auto &
driver=$!
trap 'kill -TERM "$driver"; wait "$driver"; scontrol requeue "$SLURM_JOB_ID"; exit' TERM
wait "$driver"
