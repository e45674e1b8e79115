"""The viewer in a real browser: load, filter, open, navigate, follow; and nothing a model wrote may run."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import serving, until, wait
from synthetic_runs import Writer, run_code, tokenizer, training_records, write_evaluation, write_training_run

from solostream.envs.types import Task

pytestmark = pytest.mark.browser

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=2">\' "</pre>'

# The last thing that a page waits for when it starts, or when its list is narrowed: the numbers on the chips.
BESIDE = "[...document.querySelectorAll('#filters b')].every(count => count.textContent)"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_run(tmp_path_factory.mktemp("runs") / "first", 400, problems=30)


@pytest.fixture(scope="module")
def site(place: Path) -> Iterator[str]:
    other = write_evaluation(place.parent / "second", 10, 2)
    with serving([place, other]) as address:
        while [run["rows"] for run in httpx.get(f"{address}/api/runs").json()] != [400, 20]:
            time.sleep(0.05)
        yield address


@pytest.fixture
def page(browser, site: str) -> Iterator:
    page = browser.new_page(viewport={"width": 1280, "height": 820})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(f"{site}/trajectories?run=first")
    page.wait_for_selector(".turn")
    until(page, BESIDE)
    yield page
    page.close()
    assert complaints == []


def records(place: Path) -> list[dict]:
    lines = [json.loads(line) for line in (place / "trajectories.jsonl").read_text().splitlines()]
    return [line for line in lines if "turns" in line]


def advantage(place: Path, record: dict) -> float:
    lines = [json.loads(line) for line in (place / "trajectories.jsonl").read_text().splitlines()]
    return {k: v for line in lines for k, v in line.get("advantages", {}).items()}[str(record["dispatch"]["event"])]


def chip(page, name: str):
    return page.locator(f'#filters [data-name="{name}"]')


def picked(page) -> str:
    page.wait_for_selector(".row.picked")
    return page.locator(".row.picked").get_attribute("id")


def test_load_shows_the_first_trajectory(page, place: Path) -> None:
    first = records(place)[0]
    assert page.locator("h1").inner_text().startswith("✓" if first["reward"] > 0.5 else "✗")
    page.keyboard.press("m")  # the text as it was written, not its formulas
    until(page, "document.querySelectorAll('math').length === 0")
    assert first["task_id"] in page.locator("h1").inner_text()
    assert page.locator("#state").inner_text() == "400 trajectories"
    assert first["turns"][-1]["text"].strip().splitlines()[-1] in page.locator("#detail").inner_text()


def test_only_rows_in_view_are_in_the_page(page) -> None:
    assert page.locator(".row").count() < 40
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.wait_for_selector("#row-399")
    assert page.locator(".row").count() < 40


def test_filters_search_and_sort(page, place: Path) -> None:
    wrong = [i for i, r in enumerate(records(place)) if r["reward"] <= 0.5]
    chip(page, "wrong").click()
    until(page, f"document.getElementById('found').textContent === '{len(wrong)} found'")
    assert chip(page, "wrong").get_attribute("aria-pressed") == "true"
    assert page.locator(".row .mark.good").count() == 0
    assert page.locator(".row").first.get_attribute("id") == f"row-{wrong[0]}"
    task = records(place)[0]["task_id"]
    chip(page, "wrong").click()
    page.fill("#search", task)
    count = sum(r["task_id"] == task for r in records(place))
    until(page, f"document.getElementById('found').textContent === '{count} found'")
    assert set(page.locator(".row .name").all_inner_texts()) == {task}
    page.fill("#search", "")
    page.select_option("#sort", "-response_length")
    longest = max(records(place), key=lambda r: len(r["token_ids"]) - r["turns"][1]["start"])
    until(page, f"document.querySelector('.row .name')?.textContent === '{longest['task_id']}'")
    assert "sort=-response_length" in page.url


def test_keyboard_moves_through_the_list_and_the_tabs(page) -> None:
    assert picked(page) == "row-0"
    page.keyboard.press("j")
    page.wait_for_selector("#row-1.picked")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#row-2.picked")
    page.keyboard.press("k")
    page.wait_for_selector("#row-1.picked")
    page.keyboard.press("G")
    page.wait_for_selector("#row-399.picked")
    page.keyboard.press("2")
    page.wait_for_selector(".tokens span")
    page.keyboard.press("3")
    page.wait_for_selector(".ledger .entry")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys", state="hidden")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("NameError")
    until(page, "document.getElementById('found').textContent.includes('found')")


def test_tokens_carry_their_logprob_version_and_advantage(page, place: Path) -> None:
    record = records(place)[0]
    turn = next(turn for turn in record["turns"] if turn["role"] == "assistant")
    nats = -sum(record["logprobs"][turn["start"] : turn["end"]]) / (turn["end"] - turn["start"])
    header = page.locator(".turn.assistant .who").first
    header.wait_for()
    assert f"{nats:.2f} nats a token" in header.inner_text()
    page.keyboard.press("2")
    i = record["action_mask"].index(1)
    page.wait_for_selector(".tokens span")
    assert page.locator(".tokens span").count() == len(record["token_ids"])
    page.locator(f'.tokens [data-i="{i}"]').hover()
    shown = page.locator(".probe").inner_text()
    assert f"id {record['token_ids'][i]}" in shown
    assert f"logprob {record['logprobs'][i]:.3f}".replace("-", "−") in shown
    assert f"version {record['versions'][i]}" in shown
    assert f"advantage {advantage(place, record):.3f}".replace("-", "−") in shown
    page.locator('.tokens [data-i="0"]').hover()
    assert "forced" in page.locator(".probe").inner_text()
    text = "".join(turn["text"] for turn in record["turns"])
    assert page.locator(".tokens").evaluate("node => node.textContent") == text
    page.select_option("#colour", "advantage")
    until(page, "document.querySelector('.scale').textContent.includes('+2')")
    page.reload()  # the address remembers the view
    page.wait_for_selector(".tokens")


def test_two_attempts_side_by_side(page) -> None:
    page.keyboard.press("5")
    page.wait_for_selector(".pair")
    assert page.locator(".pair > section").count() == 2
    texts = page.locator(".pair > section").evaluate_all(
        "s => s.map(x => x.querySelector('.turn.assistant .body').innerText)"
    )
    if texts[0] != texts[1]:
        assert page.locator(".pair mark").count() > 0


def test_the_other_run(page) -> None:
    page.focus("#run")
    page.select_option("#run", "second")
    assert page.evaluate("document.activeElement.id") == "list"  # keys are shortcuts again
    page.keyboard.press("2")
    page.wait_for_selector(".tokens.ids span")  # no tokenizer there: ids
    assert "--tokenizer" in page.locator("#detail").inner_text()
    assert page.locator("#state").inner_text() == "20 trajectories"


def test_a_tab_chosen_while_a_trajectory_loads_is_the_tab_it_opens_in(page) -> None:
    held: list = []
    page.route(re.compile(r"/runs/second/rows/0\b"), lambda route: held.append(route))
    page.select_option("#run", "second")
    wait(page, lambda: held)
    page.keyboard.press("2")  # nothing is there to be shown yet
    held[0].continue_()
    page.wait_for_selector(".tokens.ids span")
    assert "tab=tokens" in page.url


def test_of_two_trajectories_the_one_asked_for_last_is_shown(page, place: Path) -> None:
    held: list = []
    page.route(re.compile(r"/runs/first/rows/1\b"), lambda route: held.append(route))
    page.keyboard.press("j")
    wait(page, lambda: held)
    page.keyboard.press("j")
    first, second = (records(place)[i]["task_id"] for i in (1, 2))
    assert first != second
    until(page, f"document.querySelector('h1').textContent.includes('{second}')")
    held[0].continue_()
    page.wait_for_timeout(200)
    assert second in page.locator("h1").inner_text()
    assert picked(page) == "row-2"


def test_an_answer_to_an_earlier_filter_is_dropped(page, place: Path) -> None:
    held: list = []
    page.route(re.compile(r"/rows\?filters=wrong\b"), lambda route: held.append(route))
    chip(page, "wrong").click()
    wait(page, lambda: held)
    chip(page, "wrong").click()  # off again, and on its way before the first answer
    held[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator("#found").inner_text() == ""
    assert page.locator(".row").first.get_attribute("id") == "row-0"
    assert page.locator(".row").nth(3).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(browser, site: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1360, "height": 860}, color_scheme=scheme)
    page.goto(f"{site}/trajectories?run=first&row=3")
    page.wait_for_selector(".turn")
    background = "getComputedStyle(document.body).backgroundColor"
    red = lambda: int(page.evaluate(background).split("(")[1].split(",")[0])
    assert (red() > 200) == (scheme == "light")
    page.keyboard.press("t")
    assert (red() > 200) == (scheme == "dark")
    page.close()


def hostile_record() -> dict:
    writer = Writer(tokenizer(), random.Random(0))
    writer.hear("user", HOSTILE)
    writer.say(HOSTILE, f"print('''{HOSTILE}''')", run_code("x", out=HOSTILE))
    writer.say(f"\\boxed{{{HOSTILE}}}")
    return writer.close(Task(HOSTILE, "", "1"), 0.0, answer=HOSTILE).to_dict()


def test_what_a_model_wrote_never_runs(browser, tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text((json.dumps(hostile_record()) + "\n") * 2)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with serving([tmp_path]) as address:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        answer = page.goto(f"{address}/trajectories")
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        page.wait_for_selector(".turn")
        assert HOSTILE in page.locator(".turn.user .text").evaluate("node => node.textContent")
        for key, selector in zip("12345", (".turn", ".tokens", ".ledger", ".raw", ".pair"), strict=True):
            page.keyboard.press(key)
            page.wait_for_selector(selector)
            assert page.evaluate("window.hacked") is None
            assert page.locator("#detail script, #list script, img[src=x]").count() == 0
        assert all(url.startswith(address) or url.startswith("data:") for url in asked)
        page.close()


def test_follows_a_run_that_is_still_writing(browser, tmp_path: Path) -> None:
    rows = list(training_records(12, problems=5))
    path = tmp_path / "trajectories.jsonl"
    path.write_text("")
    with serving([tmp_path]) as address:
        page = browser.new_page()
        page.goto(f"{address}/trajectories")
        page.wait_for_selector(".empty")
        page.keyboard.press("f")
        with path.open("a") as file:
            for i, row in enumerate(rows):
                text = json.dumps(row) + "\n"
                file.write(text[:50])
                file.flush()
                file.write(text[50:])
                file.flush()
                if i in (5, 11):
                    page.wait_for_selector(f"#row-{i}.picked")
                    until(page, f"document.querySelector('h1')?.textContent.includes({json.dumps(row['task_id'])})")
            file.write('{"broken\n')
        until(page, "document.getElementById('state').textContent.includes('1 damaged line skipped')")
        page.close()
