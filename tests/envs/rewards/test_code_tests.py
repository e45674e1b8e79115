"""Code tests run in the real sandbox."""

import asyncio

import pytest

from solostream.envs.rewards import Episode, RewardError, Rubric
from solostream.envs.types import Step, Task
from solostream.envs.workspace import Workspace

SUM = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


def play(text, meta, answer=None, **options):
    async def score():
        workspace = Workspace("fork", {}, timeout_s=5)
        try:
            last = Step(text, (), (), (), 0.0, "answered", answer)
            episode = Episode(Task("t", "?", "", meta=meta), (last,), answer, "answered", 4)
            found = await Rubric({"code_tests": options}).scores(episode, workspace)
            return found["code_tests"]
        finally:
            await workspace.close()

    return asyncio.run(score())


STDIN = {"inputs": ["1 2\n", "-5 7\n", "10 20\n"], "outputs": ["3\n", "2", "30"]}
ASSERTS = {"asserts": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]}


@pytest.mark.parametrize(
    ("text", "meta", "value", "why"),
    [
        (SUM, STDIN, 1, "3 of 3 tests passed"),
        (SUM.replace("a + b", "a * b"), STDIN, 0, "another output"),
        (SUM.replace("print(a + b)", "print(a + b, end='  \\n\\n')"), STDIN, 1, "3 of 3"),
        (SUM.replace("print(a + b)", "print(a + b); import sys; sys.exit()"), STDIN, 1, "3 of 3"),
        (SUM.replace("print(a + b)", "print(a + b); import sys; sys.exit(1)"), STDIN, 0, "SystemExit"),
        ("```python\nimport sys\nprint(sum(map(int, sys.stdin.read().split())))\n```", STDIN, 1, "3 of 3"),
        ("```python\nprint(sum(map(int, open(0).read().split())))\n```", STDIN, 1, "3 of 3"),
        ("```python\nif __name__ == '__main__':\n    print(sum(map(int, input().split())))\n```", STDIN, 1, "3 of 3"),
        ("```python\ninput(); input()\n```", STDIN, 0, "EOFError"),
        ("no program", STDIN, 0, "no program"),
        (ADD, ASSERTS, 1, "2 of 2 tests passed"),
        (ADD.replace("a + b", "a - b"), ASSERTS, 0, "AssertionError"),
        (ADD.replace("return a + b", "import sys; sys.exit(0)"), ASSERTS, 0, "left before"),
        (ADD.replace("def add", "import os\nos._exit(0)\ndef add"), ASSERTS, 0, "exited with code 0"),
        (ADD.replace("def add", "import builtins\nbuiltins.exec = lambda *a: None\ndef sub"), ASSERTS, 0, "NameError"),
        (ADD, {"tests": '["assert add(2, 2) == 4"]'}, 1, "1 of 1"),
        (SUM, {"tests": '{"inputs": ["4 4"], "outputs": ["8"]}'}, 1, "1 of 1"),
        (ADD, {"test_list": ["assert add(2, 2) == 4"]}, 1, "1 of 1"),
    ],
)
def test_programs(text, meta, value, why):
    score = play(text, meta)
    assert score.value == value
    assert why in score.why


def test_the_share_that_passes():
    wrong_for_one = SUM.replace("print(a + b)", "print(a + b if a > 0 else 0)")
    assert play(wrong_for_one, STDIN, all_or_nothing=False).value == pytest.approx(2 / 3)
    assert play(wrong_for_one, STDIN, all_or_nothing=False, most=1).value == 1


def test_a_program_may_be_the_answer_itself():
    assert play("", ASSERTS, answer="def add(a, b): return a + b").value == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("meta", [{}, {"inputs": ["1"], "outputs": []}, {"tests": "{"}])
def test_a_task_without_tests_is_a_fault_and_no_reward(meta):
    with pytest.raises(RewardError, match="reward 'code_tests' failed on task 't'"):
        play(SUM, meta)


CALLS = {"function": "add", "cases": [[[1, 2], 3], [["a", "b"], "ab"], [[[1], []], [1]]]}


@pytest.mark.parametrize(
    ("text", "value", "why"),
    [
        (ADD, 1, "3 of 3 tests passed"),
        (ADD.replace("return", "print('noise')\n    return"), 1, "3 of 3"),
        (ADD.replace("a + b", "3"), 0, "test 2: another result"),
        (ADD.replace("add", "sub"), 0, "KeyError"),
        (ADD.replace("return a + b", "import sys; sys.exit(0)"), 0, "another result"),
        (ADD.replace("return a + b", "return {1, 2}"), 0, "TypeError"),
        (ADD.replace("return a + b", "print(3); import os; os._exit(0)"), 0, "exited with code 0"),
        (ADD.replace("def add", "import json\njson.dumps = lambda x: '3'\ndef add"), 1, "3 of 3"),
        (
            ADD.replace("    return a + b", "    class E:\n        def __eq__(s, o): return True\n    return E()"),
            0,
            "TypeErr",
        ),
    ],
)
def test_calls_of_a_function(text, value, why):
    """What it returns is compared outside its sandbox: an object that equals everything equals nothing."""
    score = play(text, CALLS)
    assert score.value == value, score
    assert why in score.why
