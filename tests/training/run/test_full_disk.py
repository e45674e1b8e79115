"""A disk that fills up: one line, and the run goes on when there is room. On a real, small file system."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parent / "tiny.toml"
# $1: where to mount it, $2: Python, $3: the configuration, $4: a folder elsewhere for what is told
SCRIPT = """
mount -t tmpfs -o size=1100k none "$1" && cd "$1" || exit 1
train() {
    "$2" -m solostream train "$3" --name own --set "cold_start.phases=[]" --set run.checkpoint_every=1 $5 \\
        >/dev/null 2>"$4/err"
    echo "exit code $?"
    tr '\\r' '\\n' <"$4/err" | grep -a '^solostream:\\|Traceback'
}
train "$@"
ls runs/own/checkpoints
cat /dev/zero >fill 2>/dev/null
before=$(md5sum <runs/own/config.toml)
train "$@" --resume
[ "$before" = "$(md5sum <runs/own/config.toml)" ] && echo kept
rm fill && mount -o remount,size=40m "$1"
train "$@" --resume
ls runs/own/checkpoints
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root may mount a small file system")
def test_a_full_disk_is_one_line_and_a_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["unshare", "-m", "sh", "-c", SCRIPT, "sh", str(place), sys.executable, str(TINY), str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    told = [line for line in done.stdout.splitlines() if "warning" not in line]
    remedy = "No space left on device; make room; what is whole was kept: train goes on with --resume"
    first, second = (line for line in told if remedy in line)
    assert "/checkpoints/.draft-" in first
    assert "runs/own: " in second
    told = [line for line in told if remedy not in line]
    assert told[0] == "exit code 1"
    kept = told[1 : told.index("exit code 1", 1)]
    assert kept
    assert told[1 + len(kept) :] == ["exit code 1", "kept", "exit code 0", "step-000005", "step-000006"]
