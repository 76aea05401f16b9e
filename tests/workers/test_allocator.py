"""Specifies giving free memory back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.allocator import _malloc_trim, give_back_free_memory

KEEPS = """
import psutil, torch
from workers.allocator import give_back_free_memory

private = lambda: psutil.Process().memory_full_info().uss / 1e6
held = [torch.ones(25_000) for _ in range(2_000)]  # 100 kB each: too small to be mapped one by one
pins = held[::50]
full = private()
del held
kept = private()
give_back_free_memory()
print(full - kept, kept - private())
"""


def test_nothing_happens_to_what_is_in_use() -> None:
    values = list(range(1000))
    give_back_free_memory()
    assert values == list(range(1000))


@pytest.mark.skipif(_malloc_trim() is None, reason="the C library is not glibc")
def test_freed_blocks_between_used_ones_go_back_to_the_operating_system() -> None:
    done = subprocess.run([sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True, timeout=120)
    freed_before, given_back = map(float, done.stdout.split())
    assert freed_before < 100  # of 200 MB: glibc keeps what lies below a block in use
    assert given_back > 100
