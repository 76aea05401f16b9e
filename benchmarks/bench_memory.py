"""Private memory that evaluators add on a node: weights and factors are shared, so it should be next to nothing.

Private memory is the unique set size (USS): what would be free if the process ended. It is compared with that of an
idle actor that imported the same modules and views nothing. Images are few and small: activations, which every
evaluator needs for itself, are not what is measured. Right after scoring, the allocator still keeps the scratch memory
of the largest layers for the next candidate; at the end of a level, when it checks the shared weights, an evaluator
gives that back. Both are compared with the factors.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
import torch
import torchvision
from _prepared import in_memory, random_images, share_as_a_run
from _record import arguments, record, show
from torch import nn

from orchestrator.config.schema import ClusterSettings
from orchestrator.preparation import Prepared
from orchestrator.ray_cluster import connect
from search_spaces.candidates import Score
from search_spaces.rank_space import RankSpace, RankVector
from workers.evaluator import Evaluator, Shared
from workers.scorer import Change

NAME = "memory"
MB = 1e6
LIMIT = 0.1
"""What an evaluator may add at most, as a share of the factors' bytes."""

CLASSES = 1000


def transformer(blocks: int) -> nn.Module:
    """A vision transformer with the widths of ViT-B/16, for 64 x 64 images."""
    model: nn.Module = torchvision.models.VisionTransformer(64, 16, blocks, 12, 768, 3072, num_classes=CLASSES)
    return model


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        networks: by name, each made with random weights.
        images: in the batch.
        pixels: of an image's side.
        evaluators: started one after the other.
        step: ranks that a search gives up at a time.
        candidates: with random ranks in all layers, as that search reaches them, that each evaluator scores beside
            the dense network, the lowest and the highest ranks; `children` of each differ in one layer.
    """

    networks: Mapping[str, Callable[[], nn.Module]]
    images: int = 2
    pixels: int = 64
    evaluators: int = 3
    step: int = 10
    candidates: int = 8
    children: int = 4


FULL = Size({"ResNet-101": torchvision.models.resnet101, "ViT-B, 7 blocks": lambda: transformer(7)})
QUICK = Size({"ResNet-18": torchvision.models.resnet18}, evaluators=2, candidates=1)


class Idle:
    """An actor that imported what an evaluator imports, ran torch once, and views nothing."""

    def __init__(self, modules: Sequence[str]) -> None:
        torch.set_num_threads(1)
        for module in modules:
            importlib.import_module(module)
        with torch.inference_mode():
            nn.Conv2d(3, 16, 3)(torch.zeros(2, 3, 64, 64))

    def ready(self) -> str:
        """Answers once everything is imported."""
        return "idle"


@dataclass(frozen=True)
class Actor:
    """A Ray actor and its process."""

    handle: Any
    process: psutil.Process

    @classmethod
    def start(cls, kind: type[Any], *arguments: object) -> Actor:
        """Starts one that takes none of Ray's CPUs, so that all fit any machine; returns when it is ready."""
        actor_class: Any = ray.remote(num_cpus=0)(kind)
        handle = actor_class.remote(*arguments)
        ray.get(handle.ready.remote())
        return cls(handle, psutil.Process(ray.get(handle.__ray_call__.remote(_process_id))))

    def private_mb(self) -> float:
        """Its unique set size now, in MB."""
        return float(self.process.memory_full_info().uss) / MB

    def peak_mb(self, answer: ray.ObjectRef[Any]) -> float:
        """The largest unique set size until `answer` is there, in MB; looked at every few milliseconds."""
        peak = self.private_mb()
        while not ray.wait([answer], timeout=0.002)[0]:
            peak = max(peak, self.private_mb())
        return max(peak, self.private_mb())


def _process_id(_actor: object) -> int:
    return os.getpid()


Call = tuple[RankVector, list[Change]]
"""A parent and its children, as `Evaluator.score` takes them."""


def calls_for(space: RankSpace, size: Size) -> list[Call]:
    """The dense network, the lowest and the highest ranks, and random ones; each with some children."""
    draw = random.Random(0)

    def ranks() -> RankVector:
        # From break-even downwards in steps: ranks that no search reaches would only fill torch's cache of kernels.
        reached = [[None, 1, *range(one.useful + 1 - size.step, 1, -size.step)] for one in space.layers]
        return space.at([draw.choice(one) for one in reached])

    highest = space.at([one.useful for one in space.layers])
    calls: list[Call] = []
    for parent in (space.dense, space.smallest, highest, *(ranks() for _ in range(size.candidates))):
        other = ranks()
        changed = draw.sample(range(len(space.layers)), size.children)
        calls.append((parent, [{}, *({index: other[index]} for index in changed)]))
    return calls


def score(actor: Actor, calls: Sequence[Call]) -> float:
    """Has an evaluator score everything; returns its peak in MB.

    Raises:
        RuntimeError: a candidate could not be scored, so that the measurement would mean nothing.
    """
    peak = 0.0
    for parent, changes in calls:
        answer = actor.handle.score.remote(parent, changes)
        peak = max(peak, actor.peak_mb(answer))
        scores: list[Score] = ray.get(answer)
        for one in scores:
            if not one.ok:
                raise RuntimeError(f"{one.ranks}: {one.status}: {one.reason}")
    return peak


def measure_network(network: nn.Module, size: Size) -> dict[str, Any]:
    """Memory of evaluators that score one network, in MB beyond the idle actor's at the same moment."""
    prepared = in_memory(network, random_images(size.images, size=size.pixels, classes=CLASSES), target=0.5)
    shared = share_as_a_run(prepared)
    idle = Actor.start(Idle, ["workers.evaluator", "torchvision.models"])
    calls = calls_for(prepared.space, size)
    factors_mb = _factors_mb(shared)
    evaluators: list[Actor] = []
    found: list[dict[str, float]] = []
    for number in range(1, size.evaluators + 1):
        actor = Actor.start(Evaluator, f"evaluator-{number}", shared)
        evaluators.append(actor)
        started = actor.private_mb() - idle.private_mb()
        peak = score(actor, calls) - idle.private_mb()
        scored = actor.private_mb() - idle.private_mb()
        ray.get(actor.handle.damaged.remote())
        level_end = actor.private_mb() - idle.private_mb()
        found.append(
            {
                "started": started,
                "peak": peak,
                "scored": scored,
                "level_end": level_end,
                "scored_ratio": scored / factors_mb,
                "level_end_ratio": level_end / factors_mb,
            }
        )
    result = {
        "layers": len(prepared.space.layers),
        "weights_mb": _weights_mb(prepared),
        "factors_mb": factors_mb,
        "way": shared.way,
        "candidates": sum(len(changes) for _, changes in calls),
        "idle_mb": idle.private_mb(),
        "evaluators": found,
        "largest_scored_ratio": max(one["scored_ratio"] for one in found),
        "largest_level_end_ratio": max(one["level_end_ratio"] for one in found),
    }
    for one in (idle, *evaluators):
        ray.kill(one.handle)
    return result


def _weights_mb(prepared: Prepared) -> float:
    return sum(one.numel() * one.element_size() for one in prepared.model.parameters()) / MB


def _factors_mb(shared: Shared) -> float:
    stored = ray.get(list(shared.factors))
    return float(sum(one.array.nbytes for factors in stored for one in factors.values())) / MB


def show_network(name: str, found: Mapping[str, Any], size: Size) -> None:
    """Prints one network's evaluators."""
    rows = [
        [
            f"evaluator {number}",
            *(f"{one[moment]:.1f}" for moment in ("started", "peak", "scored", "level_end")),
            *(f"{one[ratio]:.3f}" for ratio in ("scored_ratio", "level_end_ratio")),
        ]
        for number, one in enumerate(found["evaluators"], start=1)
    ]
    title = (
        f"{name}: {found['layers']} layers, {found['weights_mb']:.0f} MB of weights, {found['factors_mb']:.0f} MB of "
        f"factors; {size.images} images of {size.pixels} x {size.pixels}, {found['candidates']} candidates, "
        f"scored the {found['way']} way.\nPrivate MB beyond an idle actor's {found['idle_mb']:.0f}"
    )
    show(
        title, ["", "started", "peak", "after scoring", "after the level", "scoring : factors", "level : factors"], rows
    )
    for moment, key in (("right after scoring", "largest_scored_ratio"), ("after a level", "largest_level_end_ratio")):
        verdict = "below" if found[key] < LIMIT else "NOT below"
        print(f"{name}: {moment} at most {found[key]:.3f} of the factors' bytes per evaluator, {verdict} {LIMIT}")


def main(given: argparse.Namespace) -> None:
    """Measures, prints and records everything."""
    started, size = time.monotonic(), QUICK if given.quick else FULL
    results: dict[str, Any] = {}
    with connect(ClusterSettings(address="local")):
        for name, make in size.networks.items():
            torch.manual_seed(0)
            results[name] = measure_network(make(), size)
            show_network(name, results[name], size)
    settings = {"images": size.images, "pixels": size.pixels, "evaluators": size.evaluators, "limit": LIMIT}
    record(NAME, given, settings, {"networks": results}, started)


if __name__ == "__main__":
    main(
        arguments(
            NAME, argparse.ArgumentParser(description="Private memory that each evaluator adds beyond an idle actor.")
        )
    )
