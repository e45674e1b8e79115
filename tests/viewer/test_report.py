"""Reports: complete without a network, escaped, and drawn from the right numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import keep, violations
from synthetic_runs import write_evaluation, write_training_run
from test_view import HOSTILE, hostile_record

from solostream.cli import eval as commands
from solostream.errors import UserError
from solostream.evaluation.compare import compare
from solostream.viewer.report import charts, write_report
from solostream.viewer.report.charts import Axis, Series
from solostream.viewer.report.evaluation import comparison_page
from solostream.viewer.report.training import Attempts, Seen


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pages")
    a = write_evaluation(place / "text", 24, 4, 0.3, tool=False)
    b = write_evaluation(place / "tool", 24, 4, 0.8, seed=2)
    compared = place / "compare.html"
    compared.write_text(comparison_page(compare(a, b)))
    return {
        "training": write_report(write_training_run(place / "run", 500, problems=30)),
        "evaluation": write_report(b),
        "comparison": compared,
    }


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["training", "evaluation", "comparison"])
def test_opens_offline_without_a_request(
    browser, pages: dict[str, Path], name: str, scheme: str, tmp_path: Path
) -> None:
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[name].as_uri())
    assert page.locator("svg.chart").count() >= 1
    assert asked == [pages[name].as_uri()]
    assert complaints == []
    assert violations(page) == []
    keep(page, tmp_path, f"report-{name}-{scheme}")
    context.close()


@pytest.mark.browser
def test_the_pointer_shows_values_and_links_open_trajectories(browser, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["training"].as_uri())
    page.locator("svg[data-points]").first.hover()
    assert re.search(r"step \d+\n", page.locator(".tip").inner_text() + "\n")
    page.locator("details.part > summary", has_text="Problems").click()
    page.locator('a[href^="#t-"]').first.click()
    page.wait_for_selector("details[open] .turn.assistant")
    assert page.locator("details[open] .turn.assistant").first.is_visible()  # what it is folded in opens, too
    heads = page.locator("details.part table.data").first.locator("thead th")
    heads.nth(2).click()
    rewards = page.locator("details.part table.data").first.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert [float(r) for r in rewards] == sorted((float(r) for r in rewards), reverse=True)
    page.close()


@pytest.mark.browser
def test_a_report_runs_nothing_that_a_model_wrote(browser, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text(json.dumps(hostile_record()) + "\n")
    path = write_report(tmp_path)
    assert HOSTILE not in path.read_text()
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("summary").first.click()
    assert HOSTILE in page.locator(".turn.user .text").first.evaluate("node => node.textContent")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    page.close()


def test_flow_on_the_page_is_the_flow_found(pages: dict[str, Path]) -> None:
    place = pages["comparison"].parent
    found = compare(place / "text", place / "tool")
    text = pages["comparison"].read_text()
    for name, count in found.flow.items():
        if count:
            assert f"{name}: {count} of 24 problems" in text


def test_problems_are_ranked_by_hand() -> None:
    def attempts(rewards: list[float]) -> Attempts:
        seen = [Seen(i, "p", i, r, None, 1, None, 0, 0, 0, 0, 0, 0.0) for i, r in enumerate(rewards)]
        return Attempts("p", seen)

    assert attempts([0, 0, 1, 1]).gain == 1
    assert attempts([0, 1, 1]).gain == 1  # first half: one attempt, last half: one attempt
    assert attempts([1]).gain == 0
    assert attempts([0, 0, 1, 1]).reward == 0.5


def test_scale_and_ticks_by_hand() -> None:
    scale = Axis(0, 10, 100, 200)
    assert scale(2.5) == 125
    assert scale.ticks(5) == [0, 2, 4, 6, 8, 10]
    assert Axis(0, 1, 0, 1).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert Axis(3, 3, 0, 100)(3) == 50


def test_a_gap_breaks_the_line() -> None:
    drawn = charts.lines([Series("a", [0, 1, 2, 3], [1.0, None, 3.0, 4.0])], x="x", y="y")
    assert drawn.count("<polyline") == 2
    assert "No data" in charts.lines([Series("a", [], [])], x="x", y="y")


def test_sankey_ribbons_are_as_wide_as_their_share() -> None:
    drawn = charts.sankey({"preservation": 2, "shrinkage": 1, "expansion": 1, "unsolved": 0}, ("a", "b"), 4)
    assert drawn.count('class="flow') == 3
    heights = [float(h) for h in re.findall(r'class="node"[^>]*height="([\d.]+)"', drawn)]
    assert heights == [142.5, 47.5, 142.5, 47.5]  # 3/4 and 1/4 of 190 on both sides


def test_damage_is_told_and_an_empty_run_refused(tmp_path: Path) -> None:
    folder = write_training_run(tmp_path / "run", 40, problems=5)
    with (folder / "trajectories.jsonl").open("a") as file:
        file.write("{broken\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "half')
    assert "1 damaged lines were left out" in write_report(folder).read_text()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "trajectories.jsonl").write_text("")
    with pytest.raises(UserError, match="it is empty"):
        write_report(tmp_path / "empty")


def test_the_compare_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = write_evaluation(tmp_path / "a", 12, 4, 0.3)
    b = write_evaluation(tmp_path / "b", 12, 4, 0.9, seed=1)
    assert commands.compare(a, b, out=tmp_path / "c.html") == 0
    shown = capsys.readouterr().out
    assert "pass@4" in shown
    assert "McNemar at k = 4" in shown
    assert (tmp_path / "c.html").exists()
    with pytest.raises(UserError, match="unknown metric 'acc'"):
        commands.compare(a, b, metrics=("acc",))


def test_the_foot_says_what_made_both_sides_and_nothing_of_what_is_not_known(tmp_path: Path) -> None:
    a, b = (write_evaluation(tmp_path / name, 6, 2, 0.5, tool=False) for name in ("a", "b"))
    facts = {"solostream": "7.0.1", "commit": "c" * 40, "python": "3.12.9", "gpus": ["H<100>"], "system": "Linux 6"}
    summary = json.loads((b / "summary.json").read_text()) if (b / "summary.json").exists() else {}
    (b / "summary.json").write_text(json.dumps({**summary, "config": {"seed": 41}, "provenance": facts}))
    page = tmp_path / "compare.html"
    assert commands.compare(a, b, out=page) == 0
    foot = page.read_text().rpartition("<footer>")[2]
    assert foot.count("Made with") == 1
    assert "solostream 7.0.1 (cccccccccccc), Python 3.12.9" in foot
    assert "H&lt;100&gt;, Linux 6; seed 41<br>" in foot
    assert "solostream 7.0.1" in write_report(b).read_text().rpartition("<footer>")[2]
