"""Following a sweep: what was proposed, what came of it, and what everybody is told. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.progress import Observer, duration
from orchestrator.report.quantities import milliseconds, plural
from orchestrator.storage import Storage
from orchestrator.sweeps.curves import Curves
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.halving import Halving
from orchestrator.sweeps.outcomes import LOST, parquet_bytes, row_of, table_of
from orchestrator.sweeps.preparing import PreparedSweep
from orchestrator.sweeps.proposals import Proposals
from orchestrator.sweeps.trial_times import TrialTimes, awaits_timing
from orchestrator.sweeps.trials import LATENCY, Trial, budget_text
from orchestrator.sweeps.work import Row

__all__ = ["Following", "ended_rows"]

_TABLE_EVERY_S = 10.0


class Following:
    """A sweep's bookkeeping, new or resumed.

    Args:
        directory: of the sweep.
        prepared: the sweep.
        proposals: where new trials come from.
        rows: of all trials begun before, by name.
        observer: who watches.

    Attributes:
        epochs: trained in this process.
    """

    def __init__(
        self,
        directory: SweepDirectory,
        prepared: PreparedSweep,
        proposals: Proposals,
        rows: Mapping[str, Row],
        wanted: int,
        observer: Observer,
    ) -> None:
        self._directory, self._place, self._prepared = directory, directory.trials, prepared
        self._proposals, self._wanted, self._observer = proposals, wanted, observer
        self._trials = {trial.name: trial for trial in directory.proposed()}
        self._rows = dict(rows)
        self._unfinished = [one for one in self._trials.values() if self._rows[one.name]["status"] == "unfinished"]
        self._running: dict[str, str] = {}
        self._left: dict[str, int] = {}
        self._histories: dict[str, list[Mapping[str, Any]]] = {}
        asha = prepared.plan.settings.asha
        self._halving = None if asha is None else Halving(asha.grace, asha.factor)
        self._hopeless: set[str] = set()
        self._devices = prepared.plan.devices
        self._times: TrialTimes | None = None
        self._curves = Curves(directory.local)
        self._started, self._written, self._trained_s, self.epochs = time.monotonic(), 0.0, 0.0, 0
        self._recall()

    def time_by(self, times: TrialTimes | None) -> None:
        """Has networks of trials timed when they finish; those that wait for it since a former process, at once."""
        self._times = times
        for trial in self._trials.values():
            result = self._directory.result(trial, self._place)
            if times is not None and result is not None and awaits_timing(result, self._devices):
                self._take_down(trial, result)

    def next(self) -> Trial | None:
        """The next trial to run: first those that were begun before; None when there are no more."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
            self._running[trial.name] = f"goes on after {plural(self._rows[trial.name]['epochs'], 'epoch')}"
            self.show()
            return trial
        fresh = self._proposals.next()
        if fresh is None:
            return None
        self._directory.propose(fresh)
        self._trials[fresh.name] = fresh
        self._rows[fresh.name] = self._row(fresh, None, [])
        self._running[fresh.name] = "starts"
        self.show()
        return fresh

    def epoch(self, name: str, row: Row) -> bool:
        """Takes down an epoch, and says whether the trial goes on."""
        trial, history = self._trials[name], self._histories.setdefault(name, [])
        history[row["epoch"] - 1 :] = [row]  # a trial that was taken up again repeats what no checkpoint has
        self.epochs += 1
        self._trained_s += row["seconds"]
        self._rows[name] = self._row(trial, None, history)
        self._curves.add(name, row)
        self._running[name] = f"epoch {row['epoch']} of {row['of']}, accuracy {row['accuracy']:.4f}"
        self._left[name] = row["of"] - row["epoch"]
        self.show()
        if row["done"]:
            return False
        if time.monotonic() - self._written > _TABLE_EVERY_S:
            self.write()
        if self._goes_on(trial, row):
            return True
        self._hopeless.add(name)
        return False

    def ended(self, name: str) -> None:
        """A trial runs no more: it has a result, was found hopeless, or was interrupted."""
        trial, history = self._trials[name], self._histories.get(name, [])
        self._no_more(name)
        result = self._directory.result(trial, self._place)
        if result is None and name in self._hopeless:
            reason = (
                f"others of {trial.method} at {budget_text(trial.budget)} lead after {plural(len(history), 'epoch')}"
            )
            result = {"status": "stopped", "reason": reason, "history": history}
            self._directory.write_result(trial, self._place, result)
        if result is not None:
            self._take_down(trial, result)

    def lost(self, name: str, reason: str) -> None:
        """A trial's actor was lost more often than allowed: resuming the sweep tries it again."""
        self._no_more(name)
        row = {**self._rows[name], "status": "failed", "reason": f"{LOST}{reason}"}
        self._rows[name] = row
        self.write()
        self._observer.say(f"{name}: failed, {LOST}{reason}")

    def write(self) -> pd.DataFrame:
        """Brings `trials.parquet` up to date; returns the table."""
        self._written = time.monotonic()
        table = table_of(list(self._rows.values()))
        table["files"] = [f"{self._place.location}/{name}" for name in table["trial"]]
        self._directory.storage.write("trials.parquet", parquet_bytes(table))
        return table

    def stopping(self) -> None:
        """Somebody pressed Ctrl-C."""
        self._observer.say("stopping; the epochs made so far are kept, a second Ctrl-C ends at once")

    def show(self) -> None:
        """Tells whoever watches where the sweep stands, and what every running trial does."""
        status = [row["status"] for row in self._rows.values()]
        counts = [f"{count} {one}" for one in ("stopped", "failed") if (count := status.count(one))]
        ended = len(status) - status.count("unfinished")
        best = max((row["accuracy"] for row in self._rows.values() if row["status"] == "finished"), default=None)
        facts = {
            "trials done": f"{ended} of {self._wanted}" + (f" ({', '.join(counts)})" if counts else ""),
            "best accuracy": "-" if best is None else f"{best:.4f}",
            "epochs": f"{self.epochs:,} in {duration(time.monotonic() - self._started)}",
            "time left": self._time_left(self._wanted - ended - len(self._running)),
        }
        self._observer.stand({**facts, **self._running})

    def close(self) -> None:
        """Closes the curves."""
        self._curves.close_all()

    def _take_down(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """What a trial came to, once its network was timed where that is asked for."""
        if self._times is not None and awaits_timing(result, self._devices):
            self._running[trial.name] = f"is timed on {', '.join(self._devices)}"
            self.show()
            result = {**result, "latency": self._times.of(trial, result)}
            self._directory.write_result(trial, self._place, result)
            self._no_more(trial.name)
        row = self._row(trial, result, [])
        self._rows[trial.name] = row
        self._curves.close(trial.name)
        if not awaits_timing(result, self._devices):  # a device that was lost is asked again by a resumed sweep
            self._proposals.told(trial, row)
        self.write()
        self._observer.say(f"{trial.name}: {_in_words(row, self._devices)}")
        self.show()

    def _row(self, trial: Trial, result: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> Row:
        return row_of(trial, result, history, self._prepared.dense, self._devices)

    def _recall(self) -> None:
        """Fills the rungs and histories with what was recorded."""
        for trial in self._trials.values():
            result = self._directory.result(trial, self._place)
            history = (result or {}).get("history") or self._directory.history(trial, self._place)
            self._histories[trial.name] = list(history)
            for row in history:
                self._goes_on(trial, row)

    def _goes_on(self, trial: Trial, row: Mapping[str, Any]) -> bool:
        if self._halving is None or row.get("done"):
            return True
        group = (trial.method, budget_text(trial.budget), trial.seed)
        return self._halving.goes_on(group, trial.name, row["epoch"], row["accuracy"])

    def _time_left(self, waiting: int) -> str:
        """A guess: the trials that wait take as many epochs as those seen so far, and epochs as long."""
        if not self.epochs:
            return "-"
        together = max(len(self._running), 1)
        seen = [len(history) for history in self._histories.values() if history]
        left = sum(self._left.values()) + waiting * sum(seen) / len(seen)
        return f"about {duration(left * self._trained_s / self.epochs / together)}"

    def _no_more(self, name: str) -> None:
        self._running.pop(name, None)
        self._left.pop(name, None)


def ended_rows(
    directory: SweepDirectory, place: Storage, prepared: PreparedSweep
) -> tuple[dict[str, Row], frozenset[str]]:
    """Rows of all trials that were ever begun, by name, and the names of those whose networks are still to be timed."""
    rows, waiting = {}, set()
    for trial in directory.proposed():
        result = directory.result(trial, place)
        history = [] if result else list(directory.history(trial, place))
        rows[trial.name] = row_of(trial, result, history, prepared.dense, prepared.plan.devices)
        if awaits_timing(result, prepared.plan.devices):
            waiting.add(trial.name)
    return rows, frozenset(waiting)


def _in_words(row: Row, devices: Sequence[str]) -> str:
    if row["status"] != "finished":
        return f"{row['status']}: {row['reason']}"
    before = "" if row["accuracy_before"] is None else f" (before fine-tuning {row['accuracy_before']:.4f})"
    facts = [f"finished, accuracy {row['accuracy']:.4f}{before}"]
    cost = row["budget_cost"]
    if row[f"compression_{cost}"] is not None:
        facts.append(f"C({cost}) {row[f'compression_{cost}']:.4f}")
    times = [(device, row[f"{LATENCY}{device}"]) for device in devices]
    facts += [f"{device} {milliseconds(time)}" for device, time in times if time is not None]
    return "; ".join([", ".join(facts), *([row["reason"]] if row["reason"] else [])])
