"""What benchmarks search: the CIFAR networks, on real images where there are some, or any network made in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import ray
import torch
from torch import nn

from orchestrator.config.loading import check_config, read_config
from orchestrator.preparation import Prepared, prepare
from orchestrator.search_run import ranks_to_check
from orchestrator.searches.contract import Problem
from orchestrator.shared import share
from search_spaces.budgets import Budget
from search_spaces.costs import rank_space
from search_spaces.schemes.registry import schemes
from search_spaces.survey import survey
from workers.batch import Batch, run_model
from workers.choice import Question, choose
from workers.evaluator import Shared
from workers.factoriser import factors_from
from workers.models import CifarResNet

__all__ = ["cifar", "has_data", "in_memory", "random_images", "share_as_a_run"]

EXAMPLES = Path(__file__).parents[1] / "examples"


def has_data() -> bool:
    """Whether RANKRAY_DATA names a folder that holds `cifar10/`."""
    folder = os.environ.get("RANKRAY_DATA")
    return folder is not None and Path(folder, "cifar10").is_dir()


def cifar(depth: int, images: int, target: float) -> Prepared:
    """The CIFAR ResNet of a depth (20 or 56) as its example searches it, on so many images, to C_d = `target`.

    Its weights and images are random where RANKRAY_DATA names none: they take the same time.
    """
    if has_data():
        overrides = [f"data.validation_size={images}", f"search.budget.parameters={target}"]
        return prepare(read_config(EXAMPLES / f"resnet{depth}_mbs.yaml", overrides))
    torch.manual_seed(0)
    return in_memory(CifarResNet(depth), random_images(images, size=32, classes=10), target)


def random_images(count: int, *, size: int, classes: int) -> Batch:
    """`count` images of `size` x `size`, normally distributed, with random labels; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return Batch(images, torch.randint(classes, (count,), generator=generator))


def in_memory(model: nn.Module, validation: Batch, target: float) -> Prepared:
    """A network and a batch as `prepare` would hand them over, with the search that the CIFAR examples ask for."""
    model = model.eval().requires_grad_(False)
    settings = {
        "model": {"build": f"{type(model).__module__}:{type(model).__name__}"},
        "data": {"train": {"dataset": "made in memory"}, "validation_size": len(validation)},
        "search": {
            "method": "mbs",
            "budget": {"parameters": target},
            "settings": [{"step": 10, "beam_size": 5}],
            "objective": "cross_entropy",
        },
    }
    config = check_config(settings, "benchmark")
    found = survey(model, lambda network: run_model(network, validation.example().inputs))
    chosen = (schemes().get(config.search.scheme, "search.scheme"),) * len(found.layers)
    space = rank_space(found, chosen)
    problem = Problem(space, Budget.of(config.limits, space), config.search.objective, config.search.seed)
    return Prepared(config, model, found, chosen, problem, validation, None, {"model": "random", "data": "random"})


def share_as_a_run(prepared: Prepared) -> Shared:
    """What a run's evaluators are made from, the way of scoring chosen as a run chooses it."""
    shared, references = share(prepared)
    stored = ray.get(references)
    factors = {layer.name: factors_from(one) for layer, one in zip(prepared.found.layers, stored, strict=True)}
    choice = choose(prepared.subject(factors), Question(ranks_to_check([prepared.space])))
    return replace(shared, way=choice.way)
