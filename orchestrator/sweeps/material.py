"""What all trials of a sweep start from: read once, kept once in the object store, sent with no trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import torch
from torch import nn

from orchestrator.config.schema import Config
from orchestrator.preparation import Prepared
from orchestrator.searches.limits import limit_of
from orchestrator.sweeps.timed_budgets import TimedBudgets, budget_key
from orchestrator.sweeps.trials import Trial
from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.rank_space import RankSpace, RankVector
from search_spaces.schemes.contract import Scheme
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey
from workers.batch import Batch
from workers.datasets import open_dataset
from workers.evaluator import batch_from, batch_to_tensors
from workers.shared_tensors import adopt, pack, skeleton, unpack, weights_of
from workers.splits import draw_validation
from workers.training.contract import Setup
from workers.training.samples import Normalisation, Samples, read_samples

__all__ = ["Material", "StoredMaterial", "gather"]


@dataclass(frozen=True)
class Material:
    """The dense network and the data.

    Attributes:
        network: dense and trained; only read.
        found: its layers.
        train: all training samples but the held-out ones.
        held_out: `data.validation_size` of them, by `search.seed`: what trials are compared by.
        test: what results are reported on as well; never used to choose.
        fingerprints: of the weights and of the held-out samples.
        timed: what devices were found to take, for the budgets that limit them.
    """

    network: nn.Module
    found: Survey
    train: Samples
    held_out: Samples
    test: Samples | None
    fingerprints: Mapping[str, str]
    timed: TimedBudgets = field(default_factory=dict)

    def setup(
        self, trial: Trial, ranks: RankVector | None = None, device: str = "cpu", *, ranks_stand: bool = False
    ) -> Setup:
        """What a trial's training method starts from.

        Args:
            ranks_stand: see `Setup`; ranks at which a device was not timed are fitted all the same.

        Raises:
            InfeasibleBudgetError: no rank vector meets the trial's budget.
        """
        chosen = (schemes().get(trial.scheme, "sweep.scheme"),) * len(self.found.layers)
        timed = self.timed.get(budget_key(trial.scheme, trial.budget))
        space, budget = self._by_shapes(trial, chosen) if timed is None else (timed.space, timed.budget)
        return Setup(
            self.network,
            self.found.layers,
            chosen,
            space,
            budget,
            self.train,
            self.held_out,
            trial.seed,
            device,
            ranks,
            ranks_stand and ranks is not None and timed is not None and timed.knows(ranks),
        )

    def _by_shapes(self, trial: Trial, chosen: Sequence[Scheme]) -> tuple[RankSpace, Budget]:
        limits = [limit_of(cost, bound, 1) for cost, bound in trial.budget.items()]
        space = rank_space(self.found, chosen, binding=[limit.cost for limit in limits])
        return space, Budget.of(limits, space)

    def store(self) -> StoredMaterial:
        """Puts everything into the object store; Ray must be connected."""
        return StoredMaterial(
            skeleton=ray.put(skeleton(self.network)),
            weights=ray.put(pack(weights_of(self.network))),
            # Training and held-out samples are parts of the same tensors.
            samples=ray.put(_packed(self.train)),
            test=None if self.test is None else ray.put(_packed(self.test)),
            parts=ray.put((self.train.chosen, self.held_out.chosen)),
            found=ray.put(self.found),
            normalisation=self.train.normalisation,
            fingerprints=self.fingerprints,
            timed=ray.put(self.timed),
        )


@dataclass(frozen=True)
class StoredMaterial:
    """References to a sweep's material, and small descriptions."""

    skeleton: ray.ObjectRef[Any]
    weights: ray.ObjectRef[Any]
    samples: ray.ObjectRef[Any]
    test: ray.ObjectRef[Any] | None
    parts: ray.ObjectRef[Any]
    found: ray.ObjectRef[Any]
    normalisation: Normalisation | None
    fingerprints: Mapping[str, str]
    timed: ray.ObjectRef[Any]

    def load(self) -> Material:
        """The material as views of the store: trainables copy the network and only read the samples."""
        whole = self._samples(ray.get(self.samples))
        train, held_out = (replace(whole, chosen=chosen) for chosen in ray.get(self.parts))
        return Material(
            adopt(ray.get(self.skeleton), unpack(ray.get(self.weights))),
            ray.get(self.found),
            train,
            held_out,
            None if self.test is None else self._samples(ray.get(self.test)),
            self.fingerprints,
            ray.get(self.timed),
        )

    def _samples(self, packed: dict[str, Any]) -> Samples:
        batch = batch_from(packed)
        return Samples(batch.inputs, batch.labels, self.normalisation)


def gather(prepared: Prepared) -> Material:
    """Reads all training and test data into memory.

    Args:
        prepared: of the config's search: network, layers and every check of the data come from there.

    Raises:
        ConfigError: a sample cannot be read, or none is left to train on.
    """
    config = prepared.config
    whole = _read(config, config.data.train, "data.train")
    dataset = open_dataset(config.data.train, None, config.data.image_size, "data.train")
    drawn = torch.tensor(draw_validation(dataset, config.data.validation_size, config.search.seed))
    others = torch.ones(len(whole), dtype=torch.bool)
    others[drawn] = False
    test = None if config.data.test is None else _read(config, config.data.test, "data.test")
    return Material(
        prepared.model,
        prepared.found,
        whole.part(others.nonzero().flatten()),
        whole.part(drawn),
        test,
        prepared.fingerprints,
    )


def _read(config: Config, source: dict[str, Any], key: str) -> Samples:
    given = config.data.normalize
    normalisation = None if given is None else Normalisation(given.mean, given.std)
    return read_samples(open_dataset(source, None, config.data.image_size, key), None, normalisation, key)


def _packed(samples: Samples) -> dict[str, Any]:
    return pack(batch_to_tensors(Batch(samples.inputs, samples.labels)))
