"""Gives memory that torch has freed back to the operating system; the C library keeps it for the next allocation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

__all__ = ["give_back_free_memory"]


def give_back_free_memory() -> None:
    """Gives back what is free; does nothing where the C library is not glibc.

    Meant for pauses. What is kept is what makes scoring fast: with freed blocks of 2 MiB and more given back at once
    (M_MMAP_THRESHOLD), a forward pass took half as long again. But blocks of many sizes, as factorised layers have
    them, leave gaps that add up to a multiple of what is in use.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, where it is the C library."""
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
