"""The directory of a sweep: its config, its trials' files, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config_directory import ConfigDirectory
from orchestrator.storage import Storage, below
from orchestrator.sweeps.trials import Trial
from search_spaces.errors import ConfigError

__all__ = ["SweepDirectory"]

_PROGRESS, _TRIALS = "sweep.json", "proposed"


class SweepDirectory(ConfigDirectory):
    """Reads and writes a sweep's files.

    `sweep.yaml` is its config and `sweep.json` what it was asked beside it; `proposed/` has a file per trial;
    `trials.parquet` and `sweep.html` are what came out; `study.db` is Optuna's study, `tensorboard/` has the curves,
    `ranks/` the searches that rank vectors come from, and `measurements/` what devices took. Trials write to `trials/`,
    or to the config's own storage.
    """

    kind, command, config_name = "sweep", "sweep", "sweep.yaml"

    @classmethod
    def create(
        cls, location: str, raw: Mapping[str, Any], trials_at: str | None, asked: Mapping[str, Any]
    ) -> SweepDirectory:
        """A new one.

        Args:
            raw: the config, unchecked.
            trials_at: `sweep.storage`; None keeps trials in the directory itself.
            asked: how many trials and what they start from.

        Raises:
            ConfigError: it exists, or one of both places cannot be written to.
        """
        directory = cls(location)
        directory.storage.create()
        place = _absolute(below(location, "trials") if trials_at is None else below(trials_at, directory.storage.name))
        if trials_at is not None:
            Storage(place, "sweep.storage").create()
        directory.write_asked({**asked, "trials_at": place})
        directory.write_raw(raw)  # last: it makes the folder a sweep
        return directory

    def asked(self) -> dict[str, Any]:
        """`sweep.json`."""
        return self._load(self.storage, _PROGRESS)

    def write_asked(self, asked: Mapping[str, Any]) -> None:
        """Writes `sweep.json`."""
        self.storage.write(_PROGRESS, _json(asked))

    @property
    def trials(self) -> Storage:
        """Where trials write."""
        return Storage(str(self.asked()["trials_at"]), "sweep.storage", f"rankray resume {self.location}")

    @property
    def local(self) -> Path | None:
        """The folder's path where it is local."""
        return self.storage.local

    def proposed(self) -> list[Trial]:
        """All trials that were ever begun, by number."""
        names = self.storage.names(_TRIALS)
        trials = [Trial(**self._load(self.storage, f"{_TRIALS}/{name}")) for name in names if name.endswith(".json")]
        return sorted(trials, key=lambda trial: trial.number)

    def propose(self, trial: Trial) -> None:
        """Writes a new trial down, before anything of it runs."""
        self.storage.write(f"{_TRIALS}/{trial.name}.json", _json(trial.as_json()))

    def result(self, trial: Trial, place: Storage) -> dict[str, Any] | None:
        """A trial's `result.json`; None while it has none.

        Args:
            place: `trials`, opened once.
        """
        name = f"{trial.name}/result.json"
        return self._load(place, name) if place.exists(name) else None

    def write_result(self, trial: Trial, place: Storage, result: Mapping[str, Any]) -> None:
        """Ends a trial that did not end itself; its checkpoint is of no more use."""
        place.write(f"{trial.name}/result.json", _json(result))
        place.delete(f"{trial.name}/checkpoint.pt")

    def history(self, trial: Trial, place: Storage) -> Sequence[Mapping[str, Any]]:
        """The epochs of a trial that has a checkpoint."""
        name = f"{trial.name}/epochs.json"
        history: Sequence[Mapping[str, Any]] = self._load(place, name)["history"] if place.exists(name) else []
        return history

    @staticmethod
    def _load(storage: Storage, name: str) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = json.loads(storage.read(name))
        except ValueError as error:
            raise ConfigError(f"{storage.location}/{name}", f"is no JSON ({error}); delete it or restore it") from None
        return loaded


def _absolute(location: str) -> str:
    """The same place for every process on this machine, wherever it was started."""
    return location if "://" in location else str(Path(location).absolute())


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
