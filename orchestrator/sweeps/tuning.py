"""Ray Tune as it is used here: it starts trials where there is room, steps them, and takes lost ones up again.

What Tune would keep itself (proposals, rungs, checkpoints) is kept by `Following` and the trials' own files, because a
`Tuner` restores only what one `fit()` was asked for: it ignores another number of trials, forgets ASHA's rungs, and
unpickles its state. Every `fit()` here is a new one over the trials that are left; its own folder is thrown away.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.sweeps.following import Following
from orchestrator.sweeps.settings import SweepSettings
from orchestrator.sweeps.trials import Trial
from workers.quiet_log import quiet_log

__all__ = ["run_trials"]

_TUNE_LOG = "ray.tune"
"""Has pages on every lost trial and on results that it was not to keep; `Following` says it all."""

_TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own box of progress; verbose=0 silences the older reporter only
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # this module has its own, which SIGTERM reaches as well
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # an interrupt does not wait for long epochs
}


def run_trials(following: Following, actor: Any, settings: SweepSettings) -> bool:
    """Runs trials until there are no more, or somebody interrupts.

    Args:
        actor: `TrialActor` with its parameters.

    Returns:
        Whether it was interrupted; trials that were running go on from their checkpoints when the sweep is resumed.
    """
    interrupt = _Interrupt(following.stopping)
    resources = {"cpu": settings.resources.cpus, "gpu": settings.resources.gpus}
    folders = tempfile.TemporaryDirectory(prefix="rankray-tune-")
    with folders as folder, _environment(_TUNE_SETTINGS), quiet_log(_TUNE_LOG):
        tuner = tune.Tuner(
            tune.with_resources(actor, resources),
            tune_config=tune.TuneConfig(
                search_alg=_Proposing(following, interrupt),
                scheduler=_Stopping(following, interrupt),
                num_samples=-1,
                max_concurrent_trials=settings.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                stop=interrupt,
                callbacks=[_Recording(following, interrupt)],
                failure_config=tune.FailureConfig(max_failures=settings.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with interrupt.on_signals():
            tuner.fit()
    if interrupt.error is not None:
        raise interrupt.error
    return interrupt.asked


class _Unkept:
    """What Tune pickles into its own folder without ever reading it there: an empty shell."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Interrupt(_Unkept, tune.Stopper):
    """Ends the experiment in an orderly way: after Ctrl-C or SIGTERM, or an error of the bookkeeping."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self.asked = False
        self.error: Exception | None = None

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """No trial is stopped by its result here."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return self.asked or self.error is not None

    def guarded(self, call: Callable[[], Any], otherwise: Any = None) -> Any:
        """Makes a call on Tune's behalf; what it raises ends the experiment instead of being lost in Tune."""
        if self.stop_all():
            return otherwise
        try:
            return call()
        except KeyboardInterrupt:
            self.asked = True
        except Exception as error:
            self.error = error
        return otherwise

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Takes Ctrl-C and SIGTERM; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_number: int, _frame: object) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            self._told()

        before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


class _Proposing(_Unkept, Searcher):
    """Hands proposals on."""

    def __init__(self, following: Following, interrupt: _Interrupt) -> None:
        super().__init__()
        self._following, self._interrupt = following, interrupt

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        trial = self._interrupt.guarded(self._following.next)
        return Searcher.FINISHED if trial is None else {"trial": trial.as_json()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Told by `_Recording`."""

    def save(self, checkpoint_path: str) -> None:
        """The sweep's own files are what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Never asked for."""


class _Stopping(_Unkept, FIFOScheduler):
    """Takes epochs down, and stops the hopeless."""

    def __init__(self, following: Following, interrupt: _Interrupt) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._following, self._interrupt = following, interrupt

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """An epoch that was not a trial's last one."""
        goes_on = self._interrupt.guarded(lambda: self._following.epoch(_name(trial), _epoch(result)), True)
        decision: str = self.CONTINUE if goes_on else self.STOP
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """A trial's last epoch; a trial that failed in it has no loss."""
        if "loss" in _epoch(result):
            self._interrupt.guarded(lambda: self._following.epoch(_name(trial), _epoch(result)))


class _Recording(_Unkept, tune.Callback):
    """Takes down what became of trials."""

    def __init__(self, following: Following, interrupt: _Interrupt) -> None:
        self._following, self._interrupt = following, interrupt

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It has a result, or was stopped."""
        self._interrupt.guarded(lambda: self._following.ended(_name(trial)))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It was lost too often."""
        error = trial.get_error() if hasattr(trial, "get_error") else None
        self._interrupt.guarded(lambda: self._following.lost(_name(trial), _last_line(error)))


def _name(trial: Any) -> str:
    return Trial(**trial.config["trial"]).name


def _epoch(result: Mapping[str, Any]) -> dict[str, Any]:
    """An epoch's own metrics, without what Tune adds."""
    row: dict[str, Any] = json.loads(result["row"])
    return row


def _last_line(error: object) -> str:
    lines = str(error or "its actor died").strip().splitlines()
    return lines[-1].strip()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
