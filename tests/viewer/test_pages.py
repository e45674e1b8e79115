"""Every page of the viewer in Chromium: no violation that axe knows, on a phone and at 200 %, light and dark; and a
stranger's five tasks in at most three clicks."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import keep, serving, until, violations
from synthetic_runs import write_evaluation, write_training_run

pytestmark = pytest.mark.browser

PAGES = {
    "start": "/",
    "run": "/run?run=aspo&with=plain",
    "behaviours": "/run?run=aspo&tab=behaviours",
    "tracker": "/run?run=aspo&tab=tracker",
    "health": "/run?run=aspo&tab=health",
    "configuration": "/run?run=aspo&tab=configuration&against=run%3Aplain",
    "system": "/run?run=aspo&tab=system",
    "files": "/run?run=aspo&tab=files",
    "evaluation": "/run?run=tool",
    "comparison": "/compare?a=text&b=tool",
    "trajectory": "/trajectories?run=aspo&row=7",
    "tokens": "/trajectories?run=aspo&row=7&tab=tokens",
    "ledger": "/trajectories?run=aspo&row=7&tab=ledger",
    "attempts": "/trajectories?run=aspo&row=7&tab=compare",
}
# All that a page waits for when it opens is there.
QUIET = (
    "!document.querySelector('[aria-busy=true]') && !!document.querySelector("
    "'#runs table, #panel:not([aria-busy=true]) > :not(.empty), #main .tiles, #detail .page')"
)
CONFIG = '[run]\nseed = {seed}\nsteps = 5\ntags = ["{name}-tag"]\n[model]\npath = "tiny"\n'
CURVES = "document.querySelectorAll('figure:not([hidden]) canvas').length"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    for name, seed in (("aspo", 0), ("plain", 1)):
        run = write_training_run(runs / name, 320, problems=24, seed=seed)
        (run / "config.toml").write_text(CONFIG.format(seed=seed, name=name))
    write_evaluation(runs / "text", 16, 4, 0.3, tool=False)
    write_evaluation(runs / "tool", 16, 4, 0.8, seed=2)
    for name in ("text", "tool"):
        (runs / name / "identity.json").write_text(json.dumps({"model": name, "data": "synthetic"}))
    return runs


@pytest.fixture(scope="module")
def site(place: Path) -> Iterator[str]:
    with serving([place]) as address:
        while {r["name"]: r["rows"] for r in httpx.get(f"{address}/api/runs").json()} != {
            "aspo": 320, "plain": 320, "text": 64, "tool": 64,
        }:  # fmt: skip
            time.sleep(0.05)
        yield address


@pytest.fixture
def page(browser, site: str) -> Iterator:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=site)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert complaints == []


def visit(page, address: str) -> None:
    page.goto(address)
    until(page, QUIET)


class Clicks:
    """Counts what a person does."""

    def __init__(self, page) -> None:
        self.page, self.count = page, 0

    def __call__(self, selector: str) -> None:
        self.count += 1
        self.page.locator(selector).first.click()

    def choose(self, selector: str, option: str) -> None:
        """One of a list: two clicks."""
        self.count += 2
        self.page.locator(selector).select_option(option)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_accessible_wide_and_on_a_phone(page, name: str, tmp_path: Path) -> None:
    visit(page, PAGES[name])
    keep(page, tmp_path, f"{name}-wide")
    assert violations(page) == []
    assert page.title().endswith("· solostream")
    for width in (640, 420):  # 1280 at 200 %, a phone
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    keep(page, tmp_path, f"{name}-phone")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)  # curves are drawn in the other colours
    keep(page, tmp_path, f"{name}-phone-dark")
    assert violations(page) == []


def test_the_strongest_colours_of_tokens_can_be_read(page, place: Path) -> None:
    """A token of 9 nats and an advantage of 3, which no run made here has: in each scheme the ink stands out."""

    def stronger(route) -> None:
        body = route.fetch().json()
        body["record"]["logprobs"] = [-9.0] * len(body["record"]["logprobs"])
        body["row"].update(advantage=-3.0, advantages=None)
        route.fulfill(json=body)

    page.route(re.compile(r"/rows/7\b"), stronger)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for colour in ("logprob", "advantage"):
            visit(page, PAGES["tokens"])
            page.locator("#detail select").select_option(colour)
            until(
                page, "[...document.querySelectorAll('.tokens span')].some((one) => /50%/.test(one.style.background))"
            )
            assert violations(page) == [], (scheme, colour)


def test_an_address_that_leads_nowhere_says_so(browser, site: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=site)
    page = context.new_page()
    page.goto("/trajectories?run=aspo&row=9999")
    until(page, "!!document.querySelector('#detail .empty')")
    assert page.locator("#detail").inner_text().split("\n")[-1] == "there is no trajectory 9999 in aspo"
    assert violations(page) == []
    context.close()


def test_the_chosen_tab_is_in_view_on_a_phone(page) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    for address in (PAGES["files"], PAGES["run"], PAGES["attempts"]):
        visit(page, address)
        box = page.locator("[role=tab][aria-selected=true]").bounding_box()
        assert box["x"] >= 0, (address, box)
        assert box["x"] + box["width"] <= 420, (address, box)


def test_titles_say_what_the_tab_is(page) -> None:
    visit(page, "/")
    assert page.title() == "Runs · solostream"
    visit(page, PAGES["tracker"])
    assert page.title() == "Tracker · aspo · solostream"
    visit(page, PAGES["comparison"])
    assert page.title() == "text → tool · solostream"
    visit(page, PAGES["trajectory"])
    assert page.title() == f"{page.locator('.row.picked .name').inner_text()} #7 · aspo · solostream"


def test_task_1_the_worst_problem_of_a_run(page, place: Path) -> None:
    visit(page, "/")
    click = Clicks(page)
    click("a:text-is('aspo')")
    until(page, "!!document.querySelector('#panel td.name a')")
    click("#panel td.name a")
    until(page, "!!document.querySelector('.row.picked')")
    assert click.count <= 3
    rewards: dict[str, list[float]] = {}
    for line in (place / "aspo/trajectories.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "turns" in record:
            rewards.setdefault(record["task_id"], []).append(record["reward"])
    lowest = min(sum(r) / len(r) for r in rewards.values())
    shown = page.locator(".row.picked .name").inner_text()
    assert sum(rewards[shown]) / len(rewards[shown]) == lowest
    assert page.locator("#found").inner_text() == f"{len(rewards[shown])} found"


def test_task_2_why_this_episode_got_0(page, place: Path) -> None:
    visit(page, "/")
    click = Clicks(page)
    click("a[aria-label='Trajectories of aspo']")
    until(page, "!!document.querySelector('.row.picked')")
    click("#filters [data-name=wrong]")
    until(page, "/found/.test(document.getElementById('found').textContent)")
    click(".row")
    until(page, "document.querySelector('.why.bad') !== null && document.querySelector('#detail').ariaBusy === 'false'")
    assert click.count <= 3
    row = int(page.locator(".row.picked").get_attribute("id").removeprefix("row-"))
    records = [json.loads(line) for line in (place / "aspo/trajectories.jsonl").read_text().splitlines()]
    record = [r for r in records if "turns" in r][row]
    said = page.locator(".why").inner_text()
    assert "Reward 0" in said
    assert f"Expected\n{record['grading']['expected'][0]}" in said
    assert f"Answer\n{record['answer'] if record['answer'] is not None else 'none'}" in said
    assert "correct (0): other numbers" in said


def test_task_3_did_the_first_call_move(page) -> None:
    visit(page, "/")
    click = Clicks(page)
    click("a:text-is('aspo')")
    until(page, "!!document.querySelector('#panel td')")
    line = page.locator("#panel tr", has_text="first call").first.inner_text().split()
    assert line[-3:] == ["40", "10", "−30"]
    click.choose("#with", "plain")  # the run without it, over this one
    assert click.count <= 3
    until(page, "/with=plain/.test(location.search)")
    until(page, "document.querySelector('figcaption')?.textContent.includes('plain')")
    caption = page.locator("figure", has_text="First call").first.inner_text()
    assert "aspo" in caption
    assert "plain" in caption
    assert "with=plain" in page.url


def test_task_4_two_runs_compared(page) -> None:
    visit(page, "/")
    click = Clicks(page)
    click("[aria-label='Compare text']")
    click("[aria-label='Compare tool']")
    click("#compare")
    until(page, "!!document.querySelector('#main .tiles')")
    assert click.count <= 3
    assert "tool is better than text by" in page.locator(".verdict").inner_text()
    page.locator("a[aria-label*='solved by tool']").first.click()  # and from there to the transcripts
    until(page, "!!document.querySelector('.row.picked')")
    assert page.locator("#found").inner_text() == "4 found"


def test_task_5_the_result_is_sent(page, tmp_path: Path) -> None:
    visit(page, "/")
    click = Clicks(page)
    click("a:text-is('aspo')")
    until(page, "!!document.querySelector('.title a.button')")
    with page.expect_download() as waiting:
        click("a.button:text-is('Report')")
    assert click.count <= 3
    waiting.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert waiting.value.suggested_filename == "aspo-report.html"
    assert "Held-out accuracy went from 25.0 % to 75.0 %" in text
    assert "src=http" not in text.replace('"', "")


def test_the_back_button_and_the_address(page) -> None:
    visit(page, "/run?run=aspo")
    page.locator("#tab-health").click()
    until(page, "document.querySelector('#panel').textContent.includes('Clipped tokens')")
    page.go_back()
    until(page, "document.querySelector('#tab-overview')?.ariaSelected === 'true'")
    visit(page, "/trajectories?run=aspo&filters=wrong&ending=answered&sort=-response_length")
    first = page.locator(".row.picked").get_attribute("id")
    found = page.locator("#found").inner_text()
    page.keyboard.press("j")
    until(page, f"document.querySelector('.row.picked')?.id && document.querySelector('.row.picked').id !== '{first}'")
    second = page.locator(".row.picked").get_attribute("id")
    shared = page.url
    page.go_back()
    until(page, f"document.querySelector('.row.picked')?.id === '{first}'")
    visit(page, shared)
    assert page.locator(".row.picked").get_attribute("id") == second
    assert page.locator("#found").inner_text() == found
    assert page.locator("#by-ending").input_value() == "answered"


def test_curves_take_the_other_colours_when_the_system_turns_dark(page) -> None:
    """Of the whole canvas the grid has the most pixels: light grey on a light page, dark grey on a dark one."""
    brightest = """() => { const c = document.querySelector('figure:not([hidden]) canvas');
      const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height), seen = {};
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen[data[i]] = (seen[data[i]] ?? 0) + 1;
      return Number(Object.entries(seen).sort((a, b) => b[1] - a[1])[0][0]); }"""
    for address in ("/run?run=aspo", "/run?run=tool"):  # curves over steps, charts over other numbers
        page.emulate_media(color_scheme="light")
        visit(page, address)
        until(page, f"({brightest})() > 200")
        page.emulate_media(color_scheme="dark")
        until(page, f"({brightest})() < 100")


def test_curves_follow_what_the_run_writes(page, place: Path) -> None:
    visit(page, "/run?run=plain")
    assert page.evaluate(CURVES) == 4
    accuracy = page.locator("figure", has_text="Accuracy").first
    assert "0.25 → 0.75" in accuracy.inner_text()
    with (place / "plain/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"phase": "eval", "step": 9, "time": 1.7e9 + 99, "accuracy": 0.875}) + "\n")
    until(page, "document.querySelector('figure')?.textContent.includes('0.25 → 0.875')")


def test_curves_smooth_and_zoom_from_the_keyboard(page) -> None:
    visit(page, "/run?run=aspo&tab=health")
    assert page.evaluate(CURVES) == 3  # of what this run wrote: clipped tokens, loss, cold start
    page.locator("#from").fill("2")
    page.locator("#from").press("Enter")
    page.locator("#smooth").focus()
    page.keyboard.press("ArrowRight")
    until(page, "/from=2/.test(location.search) && /smooth=0.02/.test(location.search)")
    page.reload()
    until(page, QUIET)
    assert page.locator("#from").input_value() == "2"
    assert page.locator("output").inner_text() == "smoothing 0.02"


def test_runs_are_searched_and_sorted(page) -> None:
    visit(page, "/")
    names = lambda: page.locator("td.name a.strong").all_inner_texts()
    page.locator("button.sort", has_text="Name").click()
    assert names() == ["aspo", "plain", "text", "tool"]
    page.locator("button.sort", has_text="Trajectories").click()
    assert names()[:2] == ["aspo", "plain"]
    page.fill("#search", "plain-tag")
    assert names() == ["plain"]
    page.fill("#search", "training tiny")
    assert sorted(names()) == ["aspo", "plain"]


def test_one_named_run_opens_its_own_page(browser, place: Path) -> None:
    with serving([place / "aspo"]) as address:
        page = browser.new_page()
        visit(page, address)
        assert page.url == f"{address}/run?run=aspo"
        page.close()
