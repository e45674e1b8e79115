#!/usr/bin/env bash
# What only a machine with a GPU can show: the device-marked tests, the parts of benchmarks/gpu.py, and the first steps
# of the quickstart on the device. A part that hangs leaves the others: 150 s for each, and $LIMIT (default 480) for all.
# Needs the packages of `pip install -e '.[train,low-memory]' pytest pytest-asyncio pytest-timeout`.
# usage: scripts/gpu_check.sh [FOLDER [PART …]]   (FOLDER: logs and the run's summary, default build/gpu)
# parts: tests learner engine memory quickstart (the default), attention settings profile
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
shift || true
parts=${*:-tests learner engine memory quickstart}
python=${PYTHON:-python3}
size=${SIZE:-0.5}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
failed=0

limited() { # NAME COMMAND...
    local name=$1 started=$SECONDS left=$((${LIMIT:-480} - SECONDS))
    shift
    if ((left <= 0)); then
        echo "# $name: not run, the time for all is over (LIMIT=${LIMIT:-480})"
        failed=1
        return
    fi
    timeout $((left < 150 ? left : 150)) "$@" 2>&1 | tee "$out/$name.log" || failed=1
    echo "# $name: $((SECONDS - started)) s"
}

for part in $parts; do
    case $part in
    tests)
        limited tests "$python" -m pytest -q --tb=short -m gpu tests/training/learner/test_gpu.py
        ;;
    quickstart)
        limited quickstart "$python" -m solostream train quickstart --name gpu --set run.steps=20 \
            --set "run.root=$out/runs" --set model.device=cuda --set data.test=50
        cp "$out/runs/gpu/summary.json" "$out/summary.json" 2>/dev/null || failed=1
        ;;
    *)
        limited "$part" "$python" benchmarks/gpu.py --sizes "$size" --parts "$part"
        ;;
    esac
done
exit $failed
