"""What is built in keeps what is asked of components from outside."""

import pytest

from solostream import registry
from solostream.training.contracts import check

KINDS = ("advantage", "loss", "sampler", "rollout", "answer", "syntax")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in registry.BUILT_IN[kind]])
def test_what_is_built_in_keeps_every_promise_of_its_kind(kind: str, name: str) -> None:
    assert [promise for promise, kept in check(kind, name) if not kept] == []
