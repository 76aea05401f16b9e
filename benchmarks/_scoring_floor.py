"""How far the fast scorer is from the machine's floor, and where the rest of the time goes.

The floor: the multiply-accumulates that cannot be avoided (every child's layers from the changed one on, and the
parent's pass once for all its children) at the rate of the machine's fastest convolution of these shapes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _record import by_turns, show
from _scoring_compare import spread
from _scoring_course import Group, score_groups
from _scoring_exact import ExactSize, course_of, network_of
from _scoring_network import Network

from search_spaces.layers import Layer, Stage
from search_spaces.rank_space import Rank, RankVector
from workers.ways import Scorer

__all__ = ["measure", "show_found"]

BATCHES = (4, 8, 16, 32, 64)
"""Samples per call that are tried for the machine's best rate: some of them fit its caches."""

CALLS_SECONDS = 0.05
"""Of convolutions for one figure."""

OPERATIONS = {
    "convolution": ("conv",),
    "linear": ("addmm", "linear", "aten::mm", "matmul"),
    "relu, add": ("relu", "clamp", "threshold", "aten::add", "add_"),
    "layout, copies": ("copy", "contiguous", "clone", "reorder", "aten::to", "empty", "resize", "pad", "fill", "zero"),
    "judge": ("softmax", "nll", "argmax", "isfinite", "aten::eq", "aten::ne", "aten::abs", "exp", "item", "sum"),
}
"""Kinds of operations by what their names contain, the first that fits; all others are `other`."""


def measure(size: ExactSize, folder: Path) -> dict[str, Any]:
    """The floor of sampled levels, how long they took, and a profile of one of their groups."""
    network = network_of(size)
    sampled = spread(course_of(network, size, folder), size.levels)
    groups = [_to_the_end(max(one.level.groups, key=lambda group: len(group.changes))) for one in sampled]
    scorer = network.fast_scorer()
    score_groups(scorer, groups[:1])
    convolutions = _convolutions(network.prepared.found.layers)
    measures: dict[str, Callable[[], float]] = {"fast": partial(_seconds, scorer, groups)}
    measures |= {
        f"{shape} x {batch}": partial(_rate, *convolutions[shape], batch) for shape in convolutions for batch in BATCHES
    }
    taken = {name: statistics.median(values) for name, values in by_turns(measures, size.repeats).items()}
    rates = {shape: max(taken[f"{shape} x {batch}"] for batch in BATCHES) for shape in convolutions}
    return {
        "network": network.name,
        "candidates": sum(len(group.changes) for group in groups),
        "rates": rates,
        "best_rate": max(rates.values()),
        "fast_seconds": taken["fast"],
        "floor": _floor(network, groups, rates, taken["fast"]),
        "profile": _profile(scorer, groups[len(groups) // 2]),
    }


def _to_the_end(group: Group) -> Group:
    """The floor is that of whole passes: nobody is stopped early."""
    return Group(group.parent, group.changes)


def _seconds(scorer: Scorer, groups: Sequence[Group]) -> float:
    started = time.perf_counter()
    score_groups(scorer, groups)
    return time.perf_counter() - started


def _shape(layer: Layer) -> str:
    """`16-32 3x3 at 32x32 /2`: channels in and out, kernel, input size, stride."""
    stage, call = layer.dense, layer.calls[0]
    kernel, stride = stage.kernel, stage.stride
    shown = f"{stage.in_channels}-{stage.out_channels} {kernel[0]}x{kernel[1]} at {call.height}x{call.width}"
    return shown if stride == (1, 1) else f"{shown} /{stride[0]}"


def _convolutions(layers: Sequence[Layer]) -> dict[str, tuple[Stage, int, int, int]]:
    """The distinct dense convolutions: stage, input height and width, multiply-accumulates of a sample."""
    found: dict[str, tuple[Stage, int, int, int]] = {}
    for layer in layers:
        if not layer.linear:
            height, width = layer.calls[0].height, layer.calls[0].width
            found.setdefault(_shape(layer), (layer.dense, height, width, layer.macs((layer.dense,))))
    return found


@torch.inference_mode()
def _rate(stage: Stage, height: int, width: int, macs: int, batch: int) -> float:
    """Multiply-accumulates per second of a dense convolution, channels last."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, stage.in_channels, height, width, generator=generator)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(*stage.weight_shape, generator=generator).contiguous(memory_format=torch.channels_last)
    assert not isinstance(stage.padding, str)
    call = partial(torch.conv2d, inputs, weight, None, stage.stride, stage.padding)
    for _ in range(3):
        call()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < CALLS_SECONDS:
        for _ in range(8):
            call()
        calls += 8
    return calls * batch * macs / elapsed


def _floor(network: Network, groups: Sequence[Group], rates: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Multiply-accumulates of the groups, the time they need at best, and its share of the time taken.

    `suffix` counts dense layers at the best rate of any shape, `by_shape` at the best rate of each shape;
    `cheapest` counts every layer dense or factored, whichever is less, at the best rate of any.
    """
    layers, images = network.prepared.found.layers, len(network.prepared.validation)
    dense: list[float] = [layer.macs((layer.dense,)) for layer in layers]
    best = max(rates.values())
    by_shape = [macs / rates.get(_shape(layer), best) for macs, layer in zip(dense, layers, strict=True)]

    def cheapest(index: int, rank: Rank | None) -> float:
        factored = network.prepared.schemes[index].stages(layers[index], rank) if rank is not None else ()
        return min(dense[index], layers[index].macs(factored)) if factored else dense[index]

    found = {
        "suffix": images * _work(groups, lambda index, _: dense[index]) / best,
        "by_shape": images * _work(groups, lambda index, _: by_shape[index]),
        "cheapest": images * _work(groups, cheapest) / best,
    }
    return {
        "suffix_macs": images * _work(groups, lambda index, _: dense[index]),
        "cheapest_macs": images * _work(groups, cheapest),
        **{name: {"seconds": floor, "times_the_floor": seconds / floor} for name, floor in found.items()},
    }


def _work(groups: Sequence[Group], cost: Callable[[int, Rank | None], float]) -> float:
    """Cost per sample: each parent once, up to its last child's changed layer, and each child from its own on."""
    total = 0.0
    for group in groups:
        starts = [min(change, default=len(group.parent)) for change in group.changes]
        total += _range(group.parent, 0, max(starts), cost)
        for start, child in zip(starts, group.children, strict=True):
            total += _range(child, start, len(child), cost)
    return total


def _range(ranks: RankVector, start: int, stop: int, cost: Callable[[int, Rank | None], float]) -> float:
    return sum(cost(index, ranks[index]) for index in range(start, stop))


def _profile(scorer: Scorer, group: Group) -> dict[str, Any]:
    """Shares of the time by kind of operation; Python's is what no operation of torch's accounts for.

    The profiler slows Python down: its share is too large, if anything.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it calls it an error that there is no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        seconds = _seconds(scorer, [group])
    events = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    kinds = dict.fromkeys([*OPERATIONS, "other"], 0.0)
    for name, spent in events.items():
        kinds[_kind(name)] += spent / seconds
    kinds["Python"] = max(0.0, 1.0 - sum(kinds.values()))
    longest = sorted(events.items(), key=lambda event: -event[1])[:12]
    return {
        "seconds": seconds,
        "candidates": len(group.changes),
        "shares": kinds,
        "operations": {name: spent / seconds for name, spent in longest},
    }


def _kind(name: str) -> str:
    return next((kind for kind, parts in OPERATIONS.items() if any(part in name for part in parts)), "other")


def show_found(found: Mapping[str, Any]) -> None:
    """Prints the rates, the floor and the profile."""
    rows = [[shape, f"{rate / 1e9:.1f}"] for shape, rate in found["rates"].items()]
    show("Convolutions of this machine, channels last, one thread", ["", "GMAC/s at best"], rows)
    labels = {
        "suffix": "dense suffix at the best rate",
        "by_shape": "dense suffix, each shape at its own rate",
        "cheapest": "dense or factored, whichever is less",
    }
    count = found["candidates"]
    rows = [["measured", f"{1000 * found['fast_seconds'] / count:.1f}", "1"]]
    for name, label in labels.items():
        floor = found["floor"][name]
        rows.append([label, f"{1000 * floor['seconds'] / count:.1f}", f"{floor['times_the_floor']:.2f}"])
    show(f"The floor, {found['network']}, {count:,} candidates", ["", "ms a candidate", "measured / floor"], rows)
    profile = found["profile"]
    shares = [[kind, f"{100 * share:.1f} %"] for kind, share in profile["shares"].items()]
    show(f"Where the time goes, {profile['candidates']} children of one parent", ["", "share"], shares)
