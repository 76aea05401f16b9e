"""The errors of RankRay: few classes, each carrying the data a caller needs to act on it.

They live on the ground floor because every floor raises them. A `UserError` is somebody's mistake
or a limit that was hit: the command line prints its one line and exits with status 2 (1 for a run
that stopped half-way). Anything else is a defect of RankRay and keeps its traceback.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ConfigError",
    "CorruptedWeightsError",
    "EvaluationTimeoutError",
    "InfeasibleBudgetError",
    "MeasurementError",
    "RankRayError",
    "RunInterruptedError",
    "RunStoppedError",
    "TrialDivergedError",
    "WorkerLostError",
]


class RankRayError(Exception):
    """Base class: the message is one line that says what was wrong, where, and what would be right."""

    exit_status = 2
    _rebuild: Callable[[], RankRayError]

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """Keeps the arguments: errors cross processes, and Exception would be rebuilt from its message alone."""
        error = super().__new__(cls, *arguments)
        error._rebuild = functools.partial(cls, *arguments, **named)
        return error

    def __reduce__(self) -> tuple[Callable[[], RankRayError], tuple[()]]:
        return self._rebuild, ()


class ConfigError(RankRayError, ValueError):
    """What the user handed over cannot be used.

    Attributes:
        key: the config key or the file that is wrong (`search.budget.parameters`, `weights.pt`).
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


class InfeasibleBudgetError(ConfigError):
    """No rank vector meets the budget.

    Attributes:
        closest: the compression C(r) that can be reached, by cost name.
    """

    def __init__(self, key: str, message: str, closest: dict[str, float]) -> None:
        super().__init__(key, message)
        self.closest = closest


class RunStoppedError(RankRayError):
    """A run ended before its answer (full disk, interrupt, no evaluator left); it can be resumed."""

    exit_status = 1


class RunInterruptedError(RunStoppedError):
    """Somebody wanted a run to end: Ctrl-C, or a batch system's signal."""


class WorkerLostError(RunStoppedError):
    """Every evaluator is gone and none could be started again.

    Attributes:
        worker: name of the last one that was lost.
        cause: what Ray said of it, in one line.
    """

    def __init__(self, worker: str, cause: str) -> None:
        super().__init__(f"{worker}: no evaluator is left; the last one was lost because: {cause}")
        self.worker = worker
        self.cause = cause


class EvaluationTimeoutError(RankRayError):
    """An evaluator did not answer within its deadline.

    Attributes:
        worker: the evaluator that hangs.
        elapsed_s: seconds waited.
    """

    def __init__(self, worker: str, elapsed_s: float) -> None:
        super().__init__(f"{worker}: no answer after {elapsed_s:.0f} s; taken for hung and replaced")
        self.worker = worker
        self.elapsed_s = elapsed_s


class MeasurementError(RankRayError):
    """A device could not be timed.

    Attributes:
        device: its name.
        reason: `noisy`, `throttled`, `timeout` or `error`, with the detail.
    """

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"{device}: {reason}")
        self.device = device
        self.reason = reason


class TrialDivergedError(RankRayError):
    """A network's training loss became NaN or infinite: the trial is over, others go on.

    Attributes:
        method: what trained it.
        epoch: in which it was noticed, from 1.
        learning_rate: at that moment.
    """

    exit_status = 1

    def __init__(self, method: str, epoch: int, learning_rate: float) -> None:
        super().__init__(
            f"{method}: the training loss became NaN or infinite in epoch {epoch} at learning rate "
            f"{learning_rate:.3g}; take a lower learning rate, a warm-up or clip_norm"
        )
        self.method = method
        self.epoch = epoch
        self.learning_rate = learning_rate


class CorruptedWeightsError(RunStoppedError):
    """The shared weights in the object store were written to: no score since the last check counts.

    Attributes:
        arrays: names of the arrays whose checksum changed.
    """

    def __init__(self, arrays: list[str]) -> None:
        super().__init__(
            f"shared weights changed in the object store: {', '.join(arrays)}; something in the model's forward "
            "writes to its own parameters in place. Scores since the last check were set aside; make the forward "
            "free of in-place writes to parameters and `rankray resume` the run"
        )
        self.arrays = arrays
