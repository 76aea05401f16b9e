"""Silence for a library that logs pages on what is said here in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_log"]


@contextmanager
def quiet_log(name: str) -> Iterator[None]:
    """Keeps a logger, and those below it that have no level of their own, from saying anything short of critical."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
