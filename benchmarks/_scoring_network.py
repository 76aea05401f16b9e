"""A network as the scoring benchmark takes it: prepared, factorised once, with its fast scorer and its searches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from _prepared import EXAMPLES, cifar, has_data, in_memory, random_images
from torch import nn

from orchestrator.config.loading import read_config
from orchestrator.preparation import Prepared, prepare
from orchestrator.searches.contract import Search
from orchestrator.searches.mbs import MBSSettings, StepAndBeam
from orchestrator.searches.registry import search_methods
from search_spaces.candidates import Precision
from search_spaces.schemes.contract import Factors
from workers.batch import accuracy
from workers.scoring import reason_against_bfloat16
from workers.subject import Subject
from workers.ways import Scorer, make_scorer

__all__ = ["Network", "cifar_network", "random_network"]


@dataclass(frozen=True)
class Network:
    """A network, what is searched for in it, and the batch that candidates are scored on."""

    name: str
    prepared: Prepared

    @cached_property
    def factors(self) -> Mapping[str, Factors]:
        """By layer name."""
        layers, schemes = self.prepared.found.layers, self.prepared.schemes
        return {
            layer.name: scheme.factorise(layer, self.prepared.model.get_parameter(f"{layer.name}.weight"))
            for layer, scheme in zip(layers, schemes, strict=True)
        }

    def fast_scorer(self, precision: Precision = "float32") -> Scorer:
        """The scorer that resumes at the changed layer, as an evaluator has it.

        Raises:
            RuntimeError: the network cannot be scored in bfloat16 here.
        """
        prepared, search = self.prepared, self.prepared.config.search
        subject = Subject(
            lambda: copy.deepcopy(prepared.model),
            prepared.found.layers,
            prepared.schemes,
            self.factors,
            prepared.validation,
            accuracy,
            prepared.config.data.slice_size,
            search.objective if search.stops_early else "",
        )
        if precision == "bfloat16":
            reason = reason_against_bfloat16("resumed", subject, [prepared.space.dense])
            if reason:
                raise RuntimeError(f"{self.name} cannot be scored in bfloat16: {reason}")
        return make_scorer("resumed", subject, precision)

    def start_search(self, state: Mapping[str, Any] | None = None) -> Search:
        """The search that the config asks for, from its beginning or from a former `state()`."""
        settings = self.prepared.config.search
        method = search_methods().get(settings.method, "search.method")
        search: Search = method.start(settings, self.prepared.problem, state)
        return search

    def with_beam(self, beam_size: int) -> Network:
        """The same network, searched with another beam size."""
        config = self.prepared.config
        assert isinstance(config.search, MBSSettings)
        settings = (StepAndBeam(step=config.search.settings[0].step, beam_size=beam_size),)
        search = config.search.model_copy(update={"settings": settings})
        return Network(self.name, replace(self.prepared, config=config.model_copy(update={"search": search})))


def cifar_network(depth: int, images: int, target: float, overrides: Sequence[str] = ()) -> Network:
    """The CIFAR ResNet of a depth as its example searches it; random weights and noise without RANKRAY_DATA.

    Args:
        overrides: of the example's config, as `--set` takes them; without RANKRAY_DATA there can be none.
    """
    if not (has_data() and overrides):
        return Network(f"resnet{depth}", cifar(depth, images, target))
    settings = [f"data.validation_size={images}", f"search.budget.parameters={target}", *overrides]
    return Network(f"resnet{depth}", prepare(read_config(EXAMPLES / f"resnet{depth}_mbs.yaml", settings)))


def random_network(name: str, model: nn.Module, images: int, *, size: int, classes: int) -> Network:
    """A network of random weights with a batch of noise, searched to C_d = 0.5; it takes as long as a real one."""
    return Network(name, in_memory(model, random_images(images, size=size, classes=classes), target=0.5))
