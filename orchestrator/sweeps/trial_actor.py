"""The Ray Tune side of a trial: an actor that steps `TrialWork` and turns what it meets into a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune

from orchestrator.storage import Storage
from orchestrator.sweeps.material import Material, StoredMaterial
from orchestrator.sweeps.rank_source import RankVectors, source_of
from orchestrator.sweeps.trials import Trial
from orchestrator.sweeps.work import Row, TrialWork, fail
from search_spaces.errors import RankRayError, RunStoppedError
from workers.causes import cause

__all__ = ["TrialActor", "TrialTerms"]


@dataclass(frozen=True)
class TrialTerms:
    """What is the same for all trials, and small.

    Attributes:
        trials_at: folder or URI that trials write to.
        ranks: by where they come from.
        threads: torch threads.
        device: `cpu` or `cuda`.
        checkpoint_every: epochs.
        again: the command that goes on, for messages.
    """

    trials_at: str
    ranks: RankVectors
    threads: int
    device: str
    checkpoint_every: int
    again: str


class TrialActor(tune.Trainable):
    """Trains one trial after another.

    Checkpoints are the project's own, not Tune's: Tune's are pickled, bound to the one `fit()` that wrote them, and
    know nothing of the config that they belong to. An actor that Tune starts again after its node was lost finds the
    trial's last checkpoint in the sweep's storage, and so does the one that a resumed sweep starts.
    """

    def setup(
        self, config: dict[str, Any], stored: StoredMaterial | None = None, terms: TrialTerms | None = None
    ) -> None:
        """Tune calls it once per actor, with what `tune.with_parameters` was given."""
        assert stored is not None
        assert terms is not None
        torch.set_num_threads(terms.threads)
        self._terms, self._place = terms, Storage(terms.trials_at, "sweep.storage", terms.again)
        self._material: Material = stored.load()
        self.reset_config(config)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """The next trial on the same actor: what was loaded stays."""
        self._trial = Trial(**new_config["trial"])
        self._work: TrialWork | None = None
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, as one text: Tune takes nested results apart.

        What goes wrong in a trial itself goes wrong again: it is recorded and ends the trial alone. Only a lost actor,
        or a storage that cannot be written to, is left to Tune, which takes the trial up again.
        """
        try:
            if self._work is None:
                self._work = self._begin()
            return _result(self._work.epoch())
        except RunStoppedError:
            raise
        except RankRayError as error:
            return self._failed(str(error))
        except Exception as error:
            return self._failed(cause(error))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: see above. Tune asks where it pauses trials, which it is not asked to do here."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see above."""

    def _begin(self) -> TrialWork:
        source = source_of(self._trial)
        found = None if source is None else self._terms.ranks[source]
        return TrialWork(
            self._trial,
            self._material,
            None if found is None else found.ranks,
            self._place,
            ranks_stand=found is not None and found.stand,
            device=self._terms.device,
            checkpoint_every=self._terms.checkpoint_every,
        )

    def _failed(self, reason: str) -> dict[str, Any]:
        history = [] if self._work is None else self._work.history
        fail(self._place, self._trial, reason, history)
        return _result({"epoch": len(history), "done": True})


def _result(row: Row) -> dict[str, Any]:
    return {"row": json.dumps(row), "done": row["done"]}
