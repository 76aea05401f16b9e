"""Training curves for TensorBoard: a folder per trial below `tensorboard/`, where the run directory is local."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

__all__ = ["Curves"]

_SCALARS = ("loss", "learning_rate", "accuracy", "seconds")


class Curves:
    """Writes epochs as scalars.

    Args:
        folder: the run directory; None writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def add(self, trial: str, row: Mapping[str, Any]) -> None:
        """An epoch; an epoch that is made again after an interruption takes the place of what came after it."""
        if self._folder is None or "loss" not in row:
            return
        if trial not in self._writers:
            self._writers[trial] = SummaryWriter(str(self._folder / "tensorboard" / trial), purge_step=row["epoch"])
        writer = self._writers[trial]
        for name, value in _scalars(row).items():
            writer.add_scalar(name, value, row["epoch"])

    def close(self, trial: str) -> None:
        """Ends a trial's file."""
        writer = self._writers.pop(trial, None)
        if writer is not None:
            writer.close()

    def close_all(self) -> None:
        """Ends all of them."""
        for trial in list(self._writers):
            self.close(trial)


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    grouped = {f"{group}/{name}": value for group in ("compression", "more") for name, value in row[group].items()}
    return {**{name: row[name] for name in _SCALARS}, **grouped}
