"""Are two answers the same? The cases of `cases/` (reported ones and neighbours of every kind), and the processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solostream.envs.rewards import grading
from solostream.envs.rewards.grading import Rules, agrade, equivalent, grade, pool, quick
from solostream.envs.rewards.grading.pool import DEADLINE, GradingPool
from solostream.errors import SandboxError, UserError

CASES = [
    json.loads(line)
    for path in sorted((Path(__file__).parent / "cases").glob("*.jsonl"))
    for line in path.read_text().splitlines()
]
HANGS = r"\prod_{k=1}^{{n}} (k^k + 1)"  # millions of digits, term by term


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}: {c['gold']} | {c['answer']}"[:60])
def test_cases(case):
    verdict = grade(case["gold"], case["answer"])
    assert verdict.equal is case["equal"], verdict.rule


WRONG = [c for c in CASES if not c["equal"] and c["kind"] != "thousands"]  # whether 1,234 is a list the gold decides


@pytest.mark.parametrize("case", WRONG[::3], ids=lambda c: f"{c['gold']} | {c['answer']}")
def test_what_is_wrong_is_wrong_the_other_way_round(case):
    assert not equivalent(case["answer"], case["gold"])


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("42", "42", True),
        ("42", " $42$. ", True),
        ("42", "42.0", True),
        ("1267", "1,267", True),
        ("42", "43", False),
        (r"\frac{1}{2}", "1/2", True),
        (r"\dfrac{19}{12}", "19/12", True),
        ("1/0", "1/0", True),
        ("7", "007", True),
        ("0", "-0", True),
        ("42", "", False),
        ("42", "4" * 3000, False),
        ("3", "9" * 400, False),
        ("2.5", "2 1/2", True),
        ("1e-05", "0.00001", True),
    ],
)
def test_quick_decides_the_plain_cases(gold, answer, same):
    verdict = quick(gold, answer)
    assert verdict is not None
    assert verdict.equal is same


@pytest.mark.parametrize(
    "answer", ["x", "4 2", r"4\leftarrow 2", r"\sqrt{2}", "3 cm", "1/0", "12,34", "٤٢", "42.0000001"]
)
def test_quick_leaves_the_rest(answer):
    assert quick("42", answer) is None


def test_quick_and_the_pool_agree():
    for case in CASES:
        if (verdict := quick(case["gold"], case["answer"])) is not None:
            assert verdict.equal is case["equal"], case


@given(st.fractions(min_value=-(10**6), max_value=10**6), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_numbers_are_themselves_in_every_spelling_and_no_other_number(value, places):
    decimal = Fraction(round(value * 10**places), 10**places)
    sign, size = "-" if decimal < 0 else "", abs(decimal)
    digits = str(size.numerator * 10**places // size.denominator).rjust(places + 1, "0")
    text = f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"
    fraction = rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"
    for spelling in (fraction, f"{decimal.numerator}/{decimal.denominator}", f"\\boxed{{{text}}}", f"**{text}**"):
        assert equivalent(text, spelling)
    assert not equivalent(text, f"{decimal.numerator + 1}/{decimal.denominator}")


PIECES = [*r"0123xyein+-*/^_(){}[]<=>,;:!|.$%&~' ", "\\", r"\frac", r"\sqrt", " or ", "**"]


@given(st.lists(st.sampled_from(PIECES), max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_is_graded_and_the_same_text_is_right(pieces):
    text = "".join(pieces)
    verdict = grade("17.25", text)
    assert verdict.rule
    assert not verdict.equal or any(character in text for character in "17")
    assert grade(text, text).equal is bool(grading.clean(text))


@pytest.mark.parametrize(
    ("rules", "gold", "answer", "same"),
    [
        (Rules(), "3.14", "3.1415", False),
        (Rules(tolerance=1e-3), "3.14", "3.1415", True),
        (Rules(tolerance=1e-4), "3.14", "3.1415", False),
        (Rules(tolerance=1e-3), r"\pi", "3.1415", True),
        (Rules(tolerance=1e-3), r"\sqrt{2}", r"\frac{1414}{1000}", True),
        (Rules(tolerance=1e-3), "(1, 2)", "(1.0005, 2)", True),
        (Rules(tolerance=1e-3), "(1, 2)", "(1.005, 2)", False),
        (Rules(units="strict"), "12 cm", "12", False),
        (Rules(units="strict"), "12 cm", "120 mm", True),
        (Rules(units="ignore"), "12 cm", "12 m", True),
        (Rules(percent="strict"), "28%", "28", False),
        (Rules(percent="strict"), "28%", "0.28", True),
        (Rules(percent="strict"), "0.28", "28%", True),
        (Rules(percent="ignore"), "28%", "0.28", False),
        (Rules(percent="ignore"), "28%", "28", True),
    ],
)
def test_options(rules, gold, answer, same):
    assert grade(gold, answer, rules).equal is same


@pytest.mark.parametrize(
    "options",
    [{"tolerance": -1}, {"tolerance": 1.0}, {"units": "some"}, {"percent": "maybe"}, {"tolerance": float("nan")}],
)
def test_options_that_mean_nothing(options):
    with pytest.raises(UserError, match="grading: "):
        Rules(**options)


def test_any_of_several_accepted_answers():
    assert equivalent(("4", "four"), "Four")
    assert equivalent(["4", "four"], "4.0")
    assert not equivalent(("4", "four"), "5")
    assert not equivalent((), "5")


@pytest.mark.parametrize(
    ("gold", "answer", "rule"),
    [
        ("42", "42.0", "the same number"),
        ("x^2", "x**2", "(Python)"),
        (r"\frac{\pi}{4}", "0.785398", "rounded at six places"),
        ("28%", "28", "percent sign left out"),
        ("1 m", "100 cm", "units converted"),
        (r"\{1,2\}", "2,1", "the same set"),
        ("Even", "even", "the same words"),
        ("1", "9^{9^{9^9}}", "refused before it was computed"),
    ],
)
def test_the_rule_that_decided_is_told(gold, answer, rule):
    assert rule in grade(gold, answer).rule


def test_nothing_of_a_models_text_is_executed(tmp_path):
    place = tmp_path / "made"
    for text in (
        f"open('{place}', 'w')",
        f"__import__('os').system('touch {place}')",
        f"(lambda: open('{place}', 'w'))()",
        f"[open('{place}', 'w') for i in (1,)]",
        "Symbol.__class__.__base__.__subclasses__()",
        f"sympify(\"open('{place}', 'w')\")",
        "x.__class__",
        f'f\'{{open("{place}", "w")}}\'',
    ):
        assert not equivalent("1", text)
    assert not place.exists()


def test_a_comparison_that_hangs_ends_and_one_beside_it_does_not_wait_for_it():
    async def together():
        hanging = [asyncio.create_task(agrade(r"\sqrt{2}", HANGS.replace("{n}", str(9000 + n)))) for n in range(6)]
        await asyncio.sleep(0)
        beside = await agrade("7q", "q + 6q")
        waiting = [task for task in hanging if not task.done()]
        return beside, waiting, await asyncio.gather(*hanging)

    beside, waiting, verdicts = asyncio.run(together())
    assert beside.equal
    assert waiting
    assert {(v.equal, v.rule) for v in verdicts} == {(False, DEADLINE)}
    assert equivalent("2y", "y + y")


def test_a_server_that_something_else_killed_costs_no_verdict():
    """The out-of-memory killer, an operator: a right answer must not become a wrong one."""
    assert equivalent("2y", "y + y")
    asked = pool.submit(r"\sqrt{2}", HANGS.replace("{n}", "9777"), Rules())
    others = [pool.submit(f"{n}y", f"{n - 1}y + y", Rules()) for n in range(31, 40)]
    os.kill(pool._pool._process.pid, signal.SIGKILL)
    assert all(future.result(60).equal for future in others)
    assert not asked.result(60).equal
    assert equivalent("3y", "y + y + y")


def test_a_server_that_dies_over_an_answer_again_is_an_infrastructure_failure():
    dies = GradingPool((sys.executable, "-c", "print('ready', flush=True); input()"))
    future = dies.submit("1", "2", Rules())
    with pytest.raises(SandboxError, match="died twice"):
        future.result(30)


@pytest.mark.parametrize(
    ("program", "error", "remedy"),
    [
        ("raise SystemExit('broken')", SandboxError, "does not start; to see why: "),
        ("print('missing')", UserError, "pip install"),
    ],
)
def test_a_server_that_cannot_start_is_no_wrong_answer(program, error, remedy):
    with pytest.raises(error, match=remedy):
        GradingPool((sys.executable, "-c", program)).submit("1", "2", Rules())


def test_safe_outside_the_main_thread():
    """math-verify's own time-outs raise there."""
    verdicts = []

    def work(n):
        verdicts.append(
            (equivalent(rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}"), equivalent(rf"{n}\sqrt{{2}}", r"\sqrt{3}"))
        )

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [(True, False)] * 3


def test_a_forked_worker_gets_processes_of_its_own():
    assert equivalent("2z", "z + z")  # the parent's server runs now
    pid = os.fork()
    if pid == 0:
        good = equivalent("2w", "w + w") and pool._pool.pid == os.getpid()
        pool._pool.stop()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert equivalent("2v", "v + v")


def test_no_process_outlives_its_user():
    program = (
        "from solostream.envs.rewards.grading import pool, equivalent, Rules\n"
        f"assert equivalent('2y', 'y+y'); pool.submit('x+1', {HANGS.replace('{n}', '9001')!r}, Rules())\n"
        "print(pool._pool._process.pid, flush=True); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    server = int(found.stdout)
    for _ in range(600):
        stat = Path(f"/proc/{server}/stat")
        if not stat.exists() or "Z" in stat.read_text(encoding="utf-8").split(")")[1][:3]:
            return
        threading.Event().wait(0.05)
    pytest.fail("the grading server is still there after 30 seconds")
