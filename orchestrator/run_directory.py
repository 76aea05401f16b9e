"""The run directory: everything a run learned, readable without RankRay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.config.loading import check_config, dump_config, parse_mapping
from orchestrator.config.schema import Config
from orchestrator.evaluation_log import read_evaluations
from orchestrator.preparation import Prepared
from orchestrator.report import RunData
from orchestrator.storage import Storage
from search_spaces.errors import ConfigError, RunStoppedError
from search_spaces.latency import LatencyCost
from search_spaces.rank_space import LayerRanks, Rank, RankSpace

__all__ = ["RunDirectory"]


class RunDirectory:
    """Reads and writes the named files of one run.

    Args:
        location: a local path or a `pyarrow.fs` URI.
        key: what to call it in messages.
    """

    def __init__(self, location: str, key: str = "--run-dir") -> None:
        self.storage = Storage(location, key)
        self.location, self._key = location, key

    @classmethod
    def create(cls, location: str, prepared: Prepared) -> RunDirectory:
        """A new run directory with its config and space.

        Raises:
            ConfigError: it exists, or cannot be written to.
        """
        run = cls(location)
        run.storage.create()
        run.begin(prepared)
        return run

    def begin(self, prepared: Prepared) -> None:
        """Writes `space.json` and `config.yaml`.

        The config is what makes a folder a run: it comes last, so that a run that was cut short here is none.
        """
        self.write_space(prepared)
        self.storage.write("config.yaml", dump_config(prepared.config).encode())

    @classmethod
    def open(cls, location: str, key: str = "run") -> RunDirectory:
        """An existing run.

        Raises:
            ConfigError: there is no run at this place.
        """
        run = cls(location, key)
        missing = [name for name in ("config.yaml", "space.json") if not run.storage.exists(name)]
        if missing:
            what = "does not exist" if not run.storage.names() else f"is no run: it has no {' and no '.join(missing)}"
            raise ConfigError(key, f"{location} {what}; a run directory is what `rankray search` writes")
        return run

    def config(self) -> Config:
        """The run's config, checked again."""
        return check_config(self._raw_config(), f"{self.location}/config.yaml")

    def _raw_config(self) -> dict[str, Any]:
        return parse_mapping(self.storage.read("config.yaml"), f"{self.location}/config.yaml")

    def space(self) -> dict[str, Any]:
        """`space.json`: layers, layers left out, fingerprints."""
        return self._load("space.json")

    def result(self) -> dict[str, Any] | None:
        """`result.json`, None while the run is unfinished."""
        return self._load("result.json") if self.storage.exists("result.json") else None

    def state(self) -> dict[str, Any] | None:
        """`search_state.json`, None before the first level's end."""
        return self._load("search_state.json") if self.storage.exists("search_state.json") else None

    def check_unchanged(self, prepared: Prepared) -> None:
        """Returns if the model and the data are still those that this run began with.

        Raises:
            ConfigError: they are not.
        """
        recorded = self.space()["fingerprints"]
        for what, key in (("model", "model.checkpoint"), ("data", "data.train")):
            if recorded[what] != prepared.fingerprints[what]:
                raise ConfigError(
                    key, f"the {what} is not what this run began with; its scores would not fit: start a new run"
                )

    def write_space(self, prepared: Prepared) -> None:
        """Writes `space.json` again once ladders are known."""
        self.storage.write("space.json", _json(space_description(prepared)))

    def write_state(self, state: dict[str, Any]) -> None:
        """Writes `search_state.json`."""
        self.storage.write("search_state.json", _json(state))

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes `result.json`: the run is finished."""
        self.storage.write("result.json", _json(result))

    def data(self) -> RunData:
        """The whole run, as its report wants it."""
        return RunData(
            name=self.storage.name,
            config=self._raw_config(),
            space=self.space(),
            result=self.result(),
            evaluations=read_evaluations(self.storage),
            state=self.state(),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working on the same local run.

        Raises:
            RunStoppedError: one does already, or the place cannot be locked.
        """
        folder = self.storage.local
        if folder is None:
            yield
            return
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunStoppedError(
                f"{self.location}: another process works on this run; wait for it or end it"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise RunStoppedError(
                f"{self.location}/.lock: cannot be locked: {error}; a run needs a place that it may write to"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _load(self, name: str) -> dict[str, Any]:
        try:
            loaded = json.loads(self.storage.read(name))
        except ValueError as error:
            raise ConfigError(f"{self.location}/{name}", f"is no JSON ({error}); restore it from a copy") from None
        if not isinstance(loaded, dict):
            raise ConfigError(f"{self.location}/{name}", "holds no JSON object; restore it from a copy")
        return loaded


def space_description(prepared: Prepared) -> dict[str, Any]:
    """`space.json`: what may be chosen, what was left out and why, and what the run was made from."""
    space = prepared.space
    layers = [
        {
            "name": layer.name,
            "aliases": list(layer.aliases),
            "kind": "linear" if layer.linear else "conv",
            "scheme": scheme.name,
            "weight_shape": list(layer.dense.weight_shape),
            **_described_ranks(ranks, scheme.ranks(layer)),
            "dense": {name: space.costs[name].of(index, None) for name in space.costs},
        }
        for index, (layer, scheme, ranks) in enumerate(
            zip(prepared.found.layers, prepared.schemes, space.layers, strict=True)
        )
    ]
    left_out = [{"name": one.name, "reason": one.reason} for one in prepared.found.left_out]
    latency = {
        one.device: _described_latency(one, space) for one in space.costs.values() if isinstance(one, LatencyCost)
    }
    measured = {"latency": latency} if latency else {}
    return {"layers": layers, "left_out": left_out, "fingerprints": prepared.fingerprints, **measured}


def _described_ranks(ranks: LayerRanks, all_ranks: Sequence[Rank]) -> dict[str, Any]:
    """What a layer offers; of numbers, full and useful rank are ranks also where a ladder holds only some of them."""
    if ranks.ladder is None:
        return {"full_rank": ranks.full, "useful_rank": ranks.useful}
    if not isinstance(all_ranks, range):
        return {"full_rank": ranks.full, "useful_rank": ranks.useful, "ladder": list(ranks.ladder)}
    return {
        "full_rank": len(all_ranks),
        "useful_rank": ranks.ladder[-1] if ranks.ladder else 0,
        "ladder": list(ranks.ladder),
    }


def _described_latency(cost: LatencyCost, space: RankSpace) -> dict[str, Any]:
    """What a device takes for every layer: its rank step, and (rank, ms, low, high) of all that was measured."""
    return {
        "step": cost.step,
        "layers": {
            layer.name: [[rank, one.ms, one.low_ms, one.high_ms] for rank, one in timings.items()]
            for layer, timings in zip(space.layers, cost.timings, strict=True)
        },
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=True) + "\n").encode()
