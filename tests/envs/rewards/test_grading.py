"""Are two answers the same?"""

import os
import signal
import threading

import pytest

from solostream.envs.rewards import grading
from solostream.envs.rewards.grading import equivalent, quick
from solostream.errors import SandboxError, UserError


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("42", "42", True),
        ("42", " $42$. ", True),
        ("42", "42.0", True),
        ("42", "+42", True),
        ("1267", "1,267", True),
        ("42", "43", False),
        ("0.5", ".5", True),
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"\dfrac{19}{12}", "19/12", True),
        (r"-\frac{1}{2}", "-0.5", True),
        ("1/0", "1/0", True),
        (r"\text{Monday}", "Monday", True),
        (r"\left(1, 2\right)", "(1,2)", True),
        ("7", "007", True),
        ("0", "-0", True),
        ("(1, 2)", r"( 1,\ 2 )", True),
        (r"\text{two words}", "two words", True),
        ("42", "", False),
        ("42", "4" * 3000, False),
        ("3", "9" * 400, False),
    ],
)
def test_quick_decides_the_plain_cases(gold, answer, same):
    assert quick(gold, answer) is same


@pytest.mark.parametrize("answer", ["x", "4 2", r"4\leftarrow 2", r"\sqrt{2}", "3 cm", "1/0", "12,34", "٤٢"])
def test_quick_leaves_the_rest(answer):
    assert quick("42", answer) is None


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        (r"1+2\sqrt{2}", r"1 + \sqrt{8}", True),
        (r"1+2\sqrt{2}", r"1 + \sqrt{7}", False),
        (r"(4, \infty)", r"(4, \infty)", True),
        ("x^2 - 1", "(x-1)(x+1)", True),
        ("x^2 - 1", "(x-1)(x-1)", False),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("42", "not a number", False),
        ("42", r"\frac{", False),
    ],
)
def test_mathematics(gold, answer, same):
    assert equivalent(gold, answer) is same


def test_a_comparison_that_hangs_is_cut_short_and_the_next_one_works(monkeypatch):
    monkeypatch.setattr(grading, "SECONDS", 1)
    grading._child.stop()
    equivalent.cache_clear()
    assert not equivalent(r"\sqrt{2} + 1", "9^{9^{9^{9}}}!")
    assert equivalent("2y", "y + y")


def test_a_child_that_something_else_killed_costs_no_verdict():
    """The out-of-memory killer, an operator: a right answer must not become a wrong one."""
    equivalent.cache_clear()
    assert equivalent("2y", "y + y")
    os.kill(grading._child._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, grading._child._process.pid, os.WEXITED | os.WNOWAIT)
    assert equivalent("3y", "y + y + y")


def test_a_child_that_cannot_start_is_no_wrong_answer(tmp_path, monkeypatch):
    equivalent.cache_clear()
    grading._child.stop()
    for program, error, remedy in (
        ("raise SystemExit('broken')", SandboxError, "does not start; to see why: "),
        ("print('missing')", UserError, "pip install"),
    ):
        (tmp_path / "child.py").write_text(program)
        monkeypatch.setattr(grading, "_PROGRAM", str(tmp_path / "child.py"))
        with pytest.raises(error, match=remedy):
            equivalent("2y", "y + y")
    monkeypatch.undo()
    assert equivalent("2y", "y + y")


def test_safe_outside_the_main_thread():
    """math-verify's own time-outs raise there."""
    verdicts = []
    equivalent.cache_clear()

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


def test_a_forked_worker_gets_a_child_of_its_own():
    assert equivalent("2z", "z + z")  # the parent's child runs now
    pid = os.fork()
    if pid == 0:
        equivalent.cache_clear()
        good = equivalent("2w", "w + w") and grading._child.pid == os.getpid()
        grading._child.stop()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert equivalent("2v", "v + v")
