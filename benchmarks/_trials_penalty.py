"""BSR's penalty: what it costs in an epoch, and what it does to the energy beyond the ranks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from _record import by_turns, ratio, show

from orchestrator.sweeps.material import Material
from orchestrator.sweeps.trials import Trial
from search_spaces.fitting import fit_to_budget
from search_spaces.rank_space import RankVector
from workers.training.bsr import BSRSettings, StableRankTraining
from workers.training.contract import Setup
from workers.training.layer_losses import energy_losses, weights_by_layer
from workers.training.samples import Samples
from workers.training.sgd import SGDSettings, SGDTraining

__all__ = ["measure_penalty", "show_penalty"]


def measure_penalty(
    material: Material, images: int, repeats: int, strength: float, sgd: Mapping[str, Any]
) -> dict[str, Any]:
    """Trains epochs with and without the penalty, at the ranks that lose the least energy at 60 % fewer MACs.

    Args:
        images: of a timed epoch; 64 steps or more, or the one decomposition at its beginning counts for too much.
        repeats: timed epochs.
        strength: lambda.
        sgd: settings of SGD.

    Returns:
        `overhead`: the CPU time of an epoch with the penalty over that of one without, less 1 (CPU time of one thread:
        other work on the machine makes little difference). `tail_energy`: the mean share of energy beyond the ranks, in
        the dense network (`before`), after an epoch over all images `with` the penalty, and `without`.
    """
    torch.set_num_threads(1)
    setup = material.setup(Trial(0, "bsr", "bsr", "channel_svd", {}, {"macs": 0.6}, 0))
    ranks = fit_to_budget(setup.space, setup.budget, energy_losses(setup, weights_by_layer(setup.network, setup)))
    few = replace(setup, train=_first(setup.train, images), held_out=_first(setup.held_out, 1))
    penalised = _training(few, ranks, strength, repeats + 1, sgd)
    settings = SGDSettings(epochs=repeats + 1, **sgd)
    plain = SGDTraining(copy.deepcopy(few.network), few.train, settings, seed=0)
    measures = {"with": lambda: _cpu_seconds(penalised.step), "without": lambda: _cpu_seconds(plain.epoch)}
    for measure in measures.values():
        measure()  # the first steps are slower
    taken = by_turns(measures, repeats)
    overhead = ratio(taken["with"], taken["without"])
    after = {"with": _training(setup, ranks, strength, 1, sgd), "without": _training(setup, ranks, 0.0, 1, sgd)}
    before = _tail(after["with"])
    tails = {name: float(training.step().more["tail_energy"]) for name, training in after.items()}
    return {
        "overhead": {name: value - 1 for name, value in overhead.items()},
        "tail_energy": {"before": before, **tails},
    }


def _training(
    setup: Setup, ranks: RankVector, strength: float, epochs: int, sgd: Mapping[str, Any]
) -> StableRankTraining:
    settings = BSRSettings.model_validate({"training": {"epochs": epochs, "strength": strength, **sgd}})
    return StableRankTraining(settings, setup, ranks)


def _tail(training: StableRankTraining) -> float:
    """The mean share of energy beyond the ranks as the network is."""
    return training.penalty.totals()[1]


def _first(samples: Samples, count: int) -> Samples:
    return samples.part(torch.arange(min(count, len(samples))))


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def show_penalty(found: Mapping[str, Any]) -> None:
    """Prints both."""
    cost, tail = found["overhead"], found["tail_energy"]
    rows = [
        ["CPU time of an epoch", f"+{cost['ratio']:.1%} ({cost['lowest']:+.1%} to {cost['highest']:+.1%})"],
        *([f"energy beyond the ranks, {name}", f"{value:.3%}"] for name, value in tail.items()),
    ]
    show("BSR's penalty", ["", ""], rows)
