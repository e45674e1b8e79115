"""`solostream check KIND SPEC`: what a kind of component promises, tried on one of yours."""

from __future__ import annotations

from typing import Annotated

import tyro

from solostream.evaluation.options import json_object


def check(
    kind: Annotated[str, tyro.conf.Positional],
    spec: Annotated[str, tyro.conf.Positional],
    /,
    options: str = "{}",
) -> int:
    """Try every promise of a kind on one component. Exit code 1 when one is broken.

    Args:
        kind: sandbox, tool, environment, reward, answer, syntax, layout, data, engine, rollout, advantage, loss,
            sampler, metric, tracker or callback.
        spec: a built-in name, the name of an entry point, or module:object; an engine's is as for eval.
        options: of the component, as JSON.
    """
    if kind == "sandbox":
        from solostream.cli.sandbox import check as judge

        return judge(spec)
    from solostream.training.contracts import check as tried

    chosen = json_object("--options", options, '{"clip_low": 0.2}')
    promises = tried(kind, spec, chosen)
    for promise, kept in promises:
        print(f"{'pass' if kept else 'FAIL'}  {promise}")
    broken = sum(not kept for _, kept in promises)
    print(f"{kind} {spec}: {len(promises) - broken} kept, {broken} broken")
    return 1 if broken else 0
