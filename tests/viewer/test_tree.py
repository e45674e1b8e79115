"""A run whose episodes branched, in a real browser: its trees are drawn, and a leaf is opened from them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import keep, serving, until, violations

from solostream.agent.exploration.tree import Branch
from solostream.agent.trajectory import Dispatch, TokenRecord, Trajectory

pytestmark = pytest.mark.browser

# leaf -> path, forks, tokens of its turns; leaf 0 is prompt 0:9, turn 9:29, output 29:37, 37:77, 77:85, 85:110
PLACES = {
    0: ((0,), (), (20, 40, 25)),
    1: ((1,), (), (35, 12, 60)),
    2: ((0, 2), (37,), (20, 15, 70)),
    3: ((0, 3), (85,), (20, 40, 8)),
    4: ((0, 2, 4), (37, 60), (20, 15, 30)),
}
REWARDS = (1.0, 0.0, 0.25, 1.0, 0.75)


def leaf(number: int, tree: int = 0) -> Trajectory:
    path, forks, lengths = PLACES[number]
    record = TokenRecord()
    record.add_observation("user", [1] * 9, "What is 6 times 7?")
    for i, n in enumerate(lengths):
        record.add_action([2] * n, [-0.5] * n, [0] * n, f"Leaf {number} says turn {i}.")
        if i < 2:
            record.add_observation("tool", [3] * 8, "42")
    dispatch = Dispatch(tree + number, 0.5, 0, 3)
    return record.close("six", REWARDS[number], "answered", dispatch=dispatch, branch=Branch(tree, 5, path, forks))


def alone(event: int) -> Trajectory:
    record = TokenRecord()
    record.add_observation("user", [1] * 9, "What is 6 times 7?")
    record.add_action([2] * 5, [-0.5] * 5, [0] * 5, "It grew on no tree.")
    return record.close("six", 0.0, "answered", dispatch=Dispatch(event, 0.5, 0))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs") / "branched"
    folder.mkdir()
    # As a run that was cut off and played its first tree again: the later rows are the tree's.
    lines = [leaf(0), leaf(1), *(leaf(i) for i in range(5)), *(leaf(i, 100) for i in range(5)), alone(200)]
    text = "".join(one.to_json() + "\n" for one in lines)
    given = {i: 0.1 * i - 0.2 for i in range(5)}
    (folder / "trajectories.jsonl").write_text(text + json.dumps({"update": 1, "advantages": given}) + "\n")
    with serving([folder]) as address:
        wait_rows(address, 13)
        yield address


def wait_rows(address: str, rows: int) -> None:
    while httpx.get(f"{address}/api/runs").json()[0]["rows"] != rows:
        time.sleep(0.02)


def test_the_leaves_of_a_tree_are_those_of_its_last_time(site: str) -> None:
    found = httpx.get(f"{site}/api/runs/branched/rows/3/tree").json()
    assert [one["id"] for one in found] == [2, 3, 4, 5, 6]
    assert [(tuple(one["path"]), tuple(one["forks"])) for one in found] == [PLACES[i][:2] for i in range(5)]
    assert [one["reward"] for one in found] == list(REWARDS)
    assert found[4]["advantage"] == pytest.approx(0.2)
    assert found[4]["turns"][-1] == ["assistant", 60, 90]
    assert [one["id"] for one in httpx.get(f"{site}/api/runs/branched/rows/9/tree").json()] == [7, 8, 9, 10, 11]
    assert httpx.get(f"{site}/api/runs/branched/rows/12/tree").json() == []


def test_a_tree_is_drawn_and_opens_its_leaves(browser, site: str, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 820})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{site}/trajectories?run=branched&row=2&tab=tree")
    page.wait_for_selector(".tree button")
    lines = page.locator(".tree button")
    assert [lines.nth(i).locator(".leaf").inner_text().partition("leaf")[2].split()[0] for i in range(5)] == [
        "0",
        "3",
        "2",
        "4",
        "1",
    ]
    assert page.locator('.tree button[aria-current="true"]').count() == 1

    # A line begins where it forks: as far along the track as its token is along the longest leaf, 132 tokens.
    def left(i: int) -> float:
        track, part = lines.nth(i).locator(".lane").bounding_box(), lines.nth(i).locator(".part").first.bounding_box()
        return (part["x"] - track["x"]) / track["width"]

    longest = 9 + 35 + 8 + 12 + 8 + 60
    assert [left(i) for i in range(5)] == pytest.approx([0, 85 / longest, 37 / longest, 60 / longest, 0], abs=0.01)
    # The stroke of leaf 2 comes down from its parent's line, past leaf 3.
    stroke, parent = lines.nth(2).locator(".fork").bounding_box(), lines.nth(0).bounding_box()
    assert parent["y"] < stroke["y"] < parent["y"] + parent["height"]
    assert violations(page) == []
    keep(page, tmp_path, "tree")
    page.emulate_media(color_scheme="dark")
    keep(page, tmp_path, "tree-dark")

    lines.nth(3).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('.tree button[aria-current="true"][aria-label^="Leaf 4,"]')
    assert "row=6" in page.url
    assert "it follows leaf 0, then leaf 2 for 60 tokens" in page.locator("#view").inner_text()

    page.goto(f"{site}/trajectories?run=branched&row=12&tab=tree")
    page.wait_for_selector(".turn")
    assert page.locator("#tab-tree").count() == 0  # what grew on no tree has none to show
    until(page, "document.querySelector('#tab-turns').getAttribute('aria-selected') === 'true'")
    page.close()
    assert complaints == []
