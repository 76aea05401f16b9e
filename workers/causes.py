"""What another library said went wrong, in one line."""

from __future__ import annotations

__all__ = ["cause"]

LONGEST = 300
"""Characters of a cause: some libraries put whole tutorials into their errors."""


def cause(error: BaseException) -> str:
    """The error's type and text on one line: `ModuleNotFoundError: No module named 'x'`."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST:
        text = text[: LONGEST - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
