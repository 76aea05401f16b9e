"""Provenance: which versions, code, data and command a result came from."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["provenance"]

_PACKAGES = ("rankray", "torch", "torchvision", "ray", "numpy", "optuna", "pandas", "pyarrow")


def provenance(fingerprints: dict[str, str]) -> dict[str, Any]:
    """What a result came from.

    Args:
        fingerprints: of the model and the data.

    Returns:
        `versions`, `git_commit` (of the folder the command ran in; None outside a checkout, `-dirty` behind it
        where files were changed), `command`, `data`, `model`, `host`, `platform`, `started` (UTC).
    """
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "git_commit": _git_commit(),
        "command": shlex.join(sys.argv),
        "data": fingerprints["data"],
        "model": fingerprints["model"],
        "host": platform.node(),
        "platform": platform.platform(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + "-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None
