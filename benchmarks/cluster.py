"""What a run on several devices and machines has to hold, stage by stage.

    python benchmarks/cluster.py [--stage NAME …] [--worlds 2,4] [--quick] [--runs FOLDER] [--json FILE]

equality: ranks against one process, weights and metrics after two updates, checkpoints across group sizes (gloo, CPU).
faults: replicas, players, ranks, machines and the driver go away (the tests that are these scenarios).
driver: its CPU an episode at 256, 2,048 and 8,192.
weights: of a 0.5 B model to two replicas by the transfer "memory", against copying their bytes (needs 5 GB).
accuracy: the quickstart, reduced, on a small cluster and in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[0] = str(HERE.parent)  # not this folder: sandbox.py and envs.py in it are no packages
sys.path.append(str(HERE))


def equality(options: argparse.Namespace) -> dict[str, object]:
    from cluster_parts import equality

    worlds = [int(world) for world in options.worlds.split(",")]
    found = equality.measure(worlds, quick=options.quick)
    print(equality.table(found))
    return found


def weights(options: argparse.Namespace) -> dict[str, float]:
    from cluster_parts import transfer

    found = asyncio.run(transfer.measure())
    print(transfer.table(found))
    return found


def faults(options: argparse.Namespace) -> dict[str, object]:
    from cluster_parts import faults

    found = faults.measure()
    print(faults.table(found))
    return {"faults": found}


def driver(options: argparse.Namespace) -> dict[str, float]:
    import collector

    return collector.table(quick=options.quick)


def accuracy(options: argparse.Namespace) -> dict[str, object]:
    from cluster_parts import accuracy

    found = accuracy.measure(options.runs, quick=options.quick)
    print(accuracy.table(found))
    return found


STAGES = {"equality": equality, "faults": faults, "driver": driver, "weights": weights, "accuracy": accuracy}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=list(STAGES), nargs="+", default=list(STAGES), help="default: all of them")
    parser.add_argument("--worlds", default="2,4", help="numbers of ranks (default 2,4)")
    parser.add_argument("--quick", action="store_true", help="fewer cases, episodes and steps")
    parser.add_argument("--runs", type=lambda name: Path(name).absolute(), default=Path("runs/cluster").absolute())
    parser.add_argument("--json", type=lambda name: Path(name).absolute(), help="write the numbers there, too")
    options = parser.parse_args()
    found: dict[str, object] = {}
    for stage in options.stage:
        if len(options.stage) > 1:
            print(f"\n## {stage}\n", flush=True)
        found[stage] = STAGES[stage](options)
    if options.json:
        options.json.write_text(json.dumps(found[options.stage[0]] if len(options.stage) == 1 else found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
