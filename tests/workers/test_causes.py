"""What another library said, in one line."""

from __future__ import annotations

from workers.causes import LONGEST, cause


def test_type_and_text() -> None:
    assert cause(KeyError("x")) == "KeyError: 'x'"


def test_several_lines_become_one() -> None:
    assert cause(ValueError("first\n\n  second\tthird ")) == "ValueError: first second third"


def test_no_text() -> None:
    assert cause(EOFError()) == "EOFError"


def test_a_tutorial_is_cut() -> None:
    said = cause(RuntimeError("word " * 1000))
    assert len(said) == len("RuntimeError: ") + LONGEST
    assert said.endswith("...")
