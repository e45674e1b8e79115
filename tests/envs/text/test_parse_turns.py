"""Turns after turns, and pieces of turns: what mutants of the parser have shown to be unpinned (docs/testing.md)."""

import pytest

from solostream.envs.text.parse import Parser, begun, ends_inside, parse, stops

CALL = "```python\nprint(7)\n```\n"


@pytest.mark.parametrize(
    ("think", "turns", "opened", "inside"),
    [
        # Nothing was open before the first turn, unless the template opens a thought in each.
        ("run", [], False, False),
        ("run", ["an answer"], False, False),
        ("run", ["an answer"], True, True),
        ("run", ["a thought</think> an answer"], True, False),
        # A thought that a call interrupted goes on in the next turn, and ends where it says so.
        ("run", ["<think>first " + CALL, "then"], False, True),
        ("run", ["<think>first " + CALL, "then</think> an answer"], False, False),
        ("run", ["<think>one</think>", "two"], False, False),
        ("skip", ["<think>one", "two " + CALL], False, True),
        ("skip", ["<think>one", "two</think> three"], False, False),
        ("skip", [CALL + "<think>still"], False, True),
        ("prefilled", ["one</think> two", "three"], False, True),
        ("prefilled-run", ["one</think>", "two " + CALL], True, True),
    ],
)
def test_whether_turns_end_in_a_thought(think, turns, opened, inside):
    assert ends_inside(turns, ["fence"], think, opened) is inside


def test_a_fence_in_another_syntax_is_no_place_where_thoughts_hide():
    # The tag stands in the string of a call, for a parser that knows the call's syntax.
    text = '<tool_call>{"name": "python", "arguments": {"code": "print(\'a <think> b\')"}}</tool_call>'
    assert ends_inside([text], ["hermes"], "run", False) is False
    assert ends_inside([text], ["fence"], "run", False) is True


@pytest.mark.parametrize(
    ("think", "inside", "expected"),
    [
        ("run", False, "run"),
        ("run", True, "prefilled-run"),
        ("prefilled-run", True, "prefilled-run"),
        ("skip", False, "skip"),
        ("skip", True, "prefilled"),
        ("prefilled", True, "prefilled"),
    ],
)
def test_what_a_turn_that_begins_in_a_thought_is_parsed_with(think, inside, expected):
    assert begun(think, inside) == expected


def test_stops_of_several_syntaxes_are_named_once_each_in_order():
    assert stops(["code", "hermes", "code"]) == ("</code>", "</tool_call>")
    assert stops([]) == ()


def test_a_skipped_thought_ends_at_its_own_closer_however_its_tags_are_cut():
    text = "<think>a</think> b <think>c " + CALL + "d</think>" + CALL
    whole = parse(text, "fence", think="skip")
    assert [text[slice(*span)] for span in whole.thinking] == [
        "<think>a</think>",
        "<think>c " + CALL + "d</think>",
    ]
    # Character by character a tag is never there at once.
    parser = Parser("fence", think="skip")
    for character in text:
        parser.feed(character)
    assert parser.finish() == whole
    assert parser.stop == whole.calls[0].span[1] == len(text)


def test_a_turn_that_ends_in_a_skipped_thought_says_so_after_a_call_too():
    assert parse("<think>a", "fence", think="skip").inside
    assert parse(CALL + "<think>a", "fence", think="skip").inside
    # A syntax's own thought, a channel, ends with the turn.
    assert not parse("<|channel|>analysis<|message|>a", "harmony", think="skip").inside


def test_a_bare_block_of_python_is_found_behind_one_that_is_none():
    prose = "```\nnot Python at all, is it?\n```\n"
    code = "```\nprint(7)\n```"
    parsed = parse(prose + code, "fence")
    assert parsed.near_miss
    (call,) = parsed.calls
    assert (prose + code)[slice(*call.span)] == code
    assert "the block does not say that it is Python" in call.arguments["error"]
