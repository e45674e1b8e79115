"""What a run on several devices and machines has to hold, stage by stage.

    python benchmarks/cluster.py --stage equality [--worlds 2,4] [--quick] [--json FILE]

weights: of a 0.5 B model to two replicas by the transfer "memory", against copying their bytes (needs 5 GB).
equality: ranks against one process, weights and metrics after two updates, checkpoints across group sizes (gloo, CPU).
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


STAGES = {"equality": equality, "weights": weights}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=list(STAGES), required=True)
    parser.add_argument("--worlds", default="2,4", help="numbers of ranks (default 2,4)")
    parser.add_argument("--quick", action="store_true", help="more than two ranks only where that is something new")
    parser.add_argument("--json", type=lambda name: Path(name).absolute(), help="write the numbers there, too")
    options = parser.parse_args()
    found = STAGES[options.stage](options)
    if options.json:
        options.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
