"""Values that Linux offers as small files; a file that is not there is no value."""

from __future__ import annotations

from pathlib import Path

__all__ = ["number", "text"]


def text(path: Path) -> str | None:
    """What the file says, without the white space and zero bytes around it."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return None


def number(path: Path) -> float | None:
    """The number in the file."""
    try:
        return float(text(path) or "")
    except ValueError:
        return None
