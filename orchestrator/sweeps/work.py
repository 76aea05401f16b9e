"""One trial's work: epochs one at a time, a checkpoint after each, the result at the end. Knows no Ray."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch

from orchestrator.storage import Storage
from orchestrator.sweeps.material import Material
from orchestrator.sweeps.trials import Trial
from search_spaces.errors import ConfigError
from search_spaces.rank_space import RankSpace, RankVector
from workers.causes import cause
from workers.training.contract import Compressed, Metrics
from workers.training.registry import trainables
from workers.training.sgd import evaluate

__all__ = ["TrialWork", "fail"]

Row = dict[str, Any]


class TrialWork:
    """A trial from its beginning, or from its last checkpoint.

    Args:
        trial: what to train.
        material: what it starts from.
        ranks: where its method needs them.
        ranks_stand: whether they need not be fitted to the budget; see `Setup`.
        storage: the sweep's; the trial's files are in the folder of its name: `checkpoint.pt` while it trains, then
            `result.json` and `model.safetensors`.
        device: `cpu` or `cuda`.
        checkpoint_every: epochs between checkpoints.

    Attributes:
        history: a row per epoch made, in this process or before it.

    Raises:
        ConfigError: settings or set-up do not fit, or the checkpoint is of another trial.
    """

    def __init__(
        self,
        trial: Trial,
        material: Material,
        ranks: RankVector | None,
        storage: Storage,
        *,
        ranks_stand: bool = False,
        device: str = "cpu",
        checkpoint_every: int = 1,
    ) -> None:
        self._trial, self._material, self._storage, self._every = trial, material, storage, checkpoint_every
        method = trainables().get(trial.trainable, f"sweep.methods.{trial.method}")
        self._setup = material.setup(trial, ranks, device, ranks_stand=ranks_stand)
        self._trainable = method.start(method.settings.model_validate(trial.settings), self._setup)
        listed = None if ranks is None else [list(one) if isinstance(one, tuple) else one for one in ranks]
        self._identity = {**trial.definition, **material.fingerprints, "ranks": listed}
        self.history: list[Row] = []
        self._restore()

    def epoch(self) -> Row:
        """One epoch; the last one leaves the result, too.

        Returns:
            The epoch's metrics, with `done` and the number of epochs in all, `of`, among them.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
            RunStoppedError: the storage cannot be written to.
        """
        if not self._trainable.done:
            self.history.append(_row(self._trainable.step()))
            if self._trainable.done or len(self.history) % self._every == 0:
                self._save()
        done = self._trainable.done
        if done:
            self._finish()
        return {**(self.history[-1] if self.history else {"epoch": 0}), "of": self._trainable.epochs, "done": done}

    def _finish(self) -> None:
        compressed = self._trainable.finish()
        folder = self._trial.name
        self._storage.write(f"{folder}/model.safetensors", _weights(compressed))
        _write_json(self._storage, f"{folder}/result.json", self._result(compressed))
        self._storage.delete(f"{folder}/checkpoint.pt")

    def _result(self, compressed: Compressed) -> Row:
        setup, test = self._setup, self._material.test
        last = self.history[-1] if self.history else {}
        known = last.get("compression") or compressed.structure.get("compression")
        compression = known or {name: setup.space.compression(name, compressed.ranks) for name in setup.space.costs}
        return {
            "status": "finished",
            "reason": "",
            "accuracy": evaluate(compressed.network, setup.held_out)[0],
            "test_accuracy": None if test is None else evaluate(compressed.network, test)[0],
            "accuracy_before": last.get("accuracy_before"),
            "compression": compression,
            "costs": _costs(setup.space, compression),
            "ranks": dict(zip((layer.name for layer in setup.layers), compressed.ranks, strict=True)),
            "structure": dict(compressed.structure),
            "history": self.history,
        }

    def _save(self) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, "history": self.history, "state": self._trainable.state()}, buffer)
        self._storage.write(f"{self._trial.name}/checkpoint.pt", buffer.getvalue())
        # Beside it, so that whoever schedules need not read a network to learn what was reached.
        _write_json(self._storage, f"{self._trial.name}/epochs.json", {"history": self.history})

    def _restore(self) -> None:
        name = f"{self._trial.name}/checkpoint.pt"
        if not self._storage.exists(name):
            return
        where = f"{self._storage.location}/{name}"
        try:
            loaded = torch.load(io.BytesIO(self._storage.read(name)), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                where, f"cannot be loaded: {cause(error)}; delete it to train from the beginning"
            ) from None
        different = _differences(_plain(loaded["identity"]), _plain(self._identity))
        if different:
            raise ConfigError(
                where, f"is of another config: {', '.join(different)} differ; delete it, or go back to that config"
            )
        self.history = list(loaded["history"])
        self._trainable.restore(loaded["state"])


def fail(storage: Storage, trial: Trial, reason: str, history: list[Row]) -> None:
    """Records that a trial cannot be finished: it diverged, or its settings do not fit; trying again would not help."""
    result = {"status": "failed", "reason": reason, "history": history}
    _write_json(storage, f"{trial.name}/result.json", result)


def _row(metrics: Metrics) -> Row:
    """In types that JSON and a checkpoint loaded with `weights_only=True` know."""
    row = asdict(metrics)
    row["compression"] = {name: float(value) for name, value in metrics.compression.items()}
    row["more"] = {name: float(value) for name, value in metrics.more.items()}
    return row


def _costs(space: RankSpace, compression: Mapping[str, float]) -> dict[str, float]:
    """What the whole network costs, also where filters were removed and ranks alone do not say."""
    return {
        name: space.costs[name].elsewhere + (1.0 - value) * space.dense_cost[name]
        for name, value in compression.items()
        if name in space.costs
    }


def _weights(compressed: Compressed) -> bytes:
    tensors = {name: one.detach().clone().contiguous() for name, one in compressed.network.state_dict().items()}
    return safetensors.torch.save(tensors, {"ranks": json.dumps(list(compressed.ranks))})


def _write_json(storage: Storage, name: str, value: Mapping[str, Any]) -> None:
    storage.write(name, (json.dumps(value, indent=1) + "\n").encode())


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key; lists and tuples alike."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{inner}": one for inner, one in _plain(value).items()})
        else:
            flat[name] = json.loads(json.dumps(value))
    return flat


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, or that only one of both has."""
    absent = object()
    return sorted(name for name in {*one, *other} if one.get(name, absent) != other.get(name, absent))
