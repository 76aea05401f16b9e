"""The network that a trial of a sweep has trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from orchestrator.hardware.run_memory import RunMemory
from orchestrator.preparation import prepare
from orchestrator.storage import Storage
from orchestrator.sweeps.directory import SweepDirectory
from orchestrator.sweeps.material import Material, gather
from orchestrator.sweeps.settings import plan_sweep
from orchestrator.sweeps.timed_budgets import budget_key, time_budget
from orchestrator.sweeps.trials import Trial, limited_devices
from search_spaces.errors import ConfigError, MeasurementError
from search_spaces.rank_space import rank_vector_from
from workers.batch import Inputs
from workers.timing.contract import Workload
from workers.training.augmentation import ready
from workers.training.contract import Compressed
from workers.training.registry import trainables

__all__ = ["Trained", "load_trained", "trained_network"]


@dataclass(frozen=True)
class Trained:
    """A trial's network.

    Attributes:
        network: made of ordinary torch layers, in eval mode.
        ranks: by layer.
        schemes: by layer.
        example: two samples as the network takes them.
    """

    network: nn.Module
    ranks: dict[str, object]
    schemes: dict[str, str]
    example: Inputs


def load_trained(location: str, name: str) -> Trained:
    """Builds it again; where filters were removed that takes the config's data, as the network's shape follows from it.

    Args:
        location: path or URI of the sweep.
        name: of the trial, as `trials.parquet` has it.

    Raises:
        ConfigError: no such sweep or trial, a trial that has not finished, or weights that do not fit.
    """
    directory = SweepDirectory.open(location)
    trials = {trial.name: trial for trial in directory.proposed()}
    if name not in trials:
        raise ConfigError("--trial", f"{location} has no trial {name!r}; its trials.parquet lists them")
    trial, place = trials[name], directory.trials
    result = directory.result(trial, place)
    if result is None or result["status"] != "finished":
        raise ConfigError("--trial", f"{name} is {'unfinished' if result is None else result['status']}; take another")
    plan = plan_sweep(directory.raw(), f"{location}/sweep.yaml")
    base = prepare(plan.config_for(trial.scheme, trial.budget))
    material = gather(base)
    if limited_devices(trial.budget):
        memory = RunMemory(directory.storage, _unmeasured)
        timed = time_budget(plan, base, trial.scheme, trial.budget, memory)
        material = replace(material, timed={budget_key(trial.scheme, trial.budget): timed})
    names = [layer.name for layer in material.found.layers]
    network = trained_network(trial, material, result, place)
    return Trained(network, dict(result["ranks"]), dict.fromkeys(names, trial.scheme), _example(material))


def trained_network(trial: Trial, material: Material, result: Mapping[str, Any], place: Storage) -> nn.Module:
    """The network of a finished trial, in eval mode.

    Args:
        result: its `result.json`.
        place: where trials write.

    Raises:
        ConfigError: its weights cannot be read, or do not fit.
    """
    ranks = rank_vector_from(result["ranks"][layer.name] for layer in material.found.layers)
    registered = trainables().get(trial.trainable, "trainable")
    setup = material.setup(trial, ranks, ranks_stand=True)
    trainable = registered.start(registered.settings.model_validate(trial.settings), setup)
    network = trainable.architecture(Compressed(material.network, ranks, result["structure"]))
    _load(network, place, trial.name)
    return network.eval()


def _unmeasured(wanted: Mapping[str, Sequence[Workload]]) -> NoReturn:
    device = next(iter(wanted))
    raise MeasurementError(device, "measurements/ of the sweep lacks what its trials went by; resume it first")


def _load(network: nn.Module, place: Storage, name: str) -> None:
    file = f"{name}/model.safetensors"
    try:
        network.load_state_dict(safetensors.torch.load(place.read(file)))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{place.location}/{file}", f"cannot be loaded: {str(error).splitlines()[0]}") from None


def _example(material: Material) -> Inputs:
    batch = material.train.batch(torch.arange(min(2, len(material.train))))
    return ready(batch.inputs, material.train.normalisation)
