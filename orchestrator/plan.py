"""The plan: what a search would do, before it does it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from orchestrator.config.schema import ClusterSettings
from orchestrator.local_step import learn_here
from orchestrator.preparation import Prepared, screening_precision, slower_way
from orchestrator.progress import duration
from orchestrator.ray_cluster import connect
from orchestrator.searches.registry import search_methods
from search_spaces.candidates import Candidate, Score
from search_spaces.costs import COST_NAMES
from search_spaces.errors import ConfigError
from search_spaces.latency import limited_device
from search_spaces.layers import Layer
from search_spaces.rank_space import Rank, RankSpace, RankVector
from search_spaces.schemes.channel_svd import ChannelSVD
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.spatial_svd import SpatialSVD
from workers.choice import Choice, Question, choose
from workers.gpu import given_gpu
from workers.ways import make_scorer

__all__ = ["Plan", "make_plan", "show_plan"]

_PROBES = 8
_DRY_RUN_S = 20.0
_ENDLESS = 100_000
"""Characters of a line on which everything fits."""
_NAME_WIDTH = 24
"""Characters of a layer's name before it is broken to make room for numbers."""


@dataclass(frozen=True)
class Plan:
    """What a search would take.

    Attributes:
        candidates: how many it would score: a dry run of the search itself with made-up scores.
        complete: whether the dry run came to its end; if not, there are at least that many.
        seconds_per_candidate: mean of a few, measured here with the threads of one evaluator.
        evaluators: how many the cluster holds.
        choice: how candidates are scored, and why no faster.
        elsewhere: they would be scored on GPUs, of which this process sees none: the seconds are this processor's.
    """

    candidates: int
    complete: bool
    seconds_per_candidate: float
    evaluators: int
    choice: Choice = field(default_factory=lambda: Choice("resumed", ""))
    elsewhere: bool = False

    @property
    def seconds(self) -> float:
        """Predicted seconds of scoring."""
        return self.candidates * self.seconds_per_candidate / self.evaluators


def make_plan(prepared: Prepared) -> Plan:
    """Counts candidates, times a few of them, and looks at the cluster (a running one only if it is configured).

    Raises:
        ConfigError: the budget limits latency, which only a search measures.
    """
    limited = [limit.cost for limit in prepared.config.limits if limited_device(limit.cost) is not None]
    if limited:
        raise ConfigError(
            f"search.budget.{limited[0]}",
            "a plan times no device; plan with multiply-accumulates in its place: --set 'search.budget={macs: 0.5}'",
        )
    prepared = learn_here(prepared)
    candidates, complete = _dry_run(prepared)
    on_gpu = prepared.config.cluster.gpus_per_evaluator > 0
    device = given_gpu() if on_gpu and torch.cuda.is_available() else torch.device("cpu")
    seconds, choice = _seconds_per_candidate(prepared, device)
    elsewhere = on_gpu and device.type == "cpu"
    return Plan(candidates, complete, seconds, _evaluators(prepared.config.cluster), choice, elsewhere)


def _dry_run(prepared: Prepared) -> tuple[int, bool]:
    """Candidates that the search asks for when a candidate's score is the share of weights it keeps."""
    settings, space = prepared.config.search, prepared.space
    search = search_methods().get(settings.method, "search.method").start(settings, prepared.problem, None)
    started, count = time.monotonic(), 0
    while not search.done:
        asked = search.ask()
        count += len(asked)
        search.tell([_made_up(candidate, space.compression("parameters", candidate.ranks)) for candidate in asked])
        if time.monotonic() - started > _DRY_RUN_S:
            return count, False
    return count, True


def _made_up(candidate: Candidate, compression: float) -> Score:
    values = {"accuracy": 1 - compression, "loss": compression, "kl": compression}
    return Score(candidate.ranks, values, precision=candidate.precision)


def _seconds_per_candidate(prepared: Prepared, device: torch.device) -> tuple[float, Choice]:
    """Mean seconds of a level's children at half their useful ranks, by the way the search will take, and which it is.

    The children lower layers that are spread evenly over the network, because those near its end cost less. Factors of
    noise take as long as real ones.
    """
    layers, space = prepared.found.layers, prepared.space
    factors = {
        layer.name: _noise(layer, scheme, ranks.offered)
        for layer, scheme, ranks in zip(layers, prepared.schemes, space.layers, strict=True)
    }
    threads, before = prepared.config.cluster.threads_per_evaluator, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lowest, halves = space.smallest, space.at([max(1, layer.useful // 2) for layer in space.layers])
        subject = prepared.subject(factors).to(device)
        rough = prepared.config.search.screens_in == "bfloat16"
        choice = choose(subject, Question([halves], [halves] if rough else ()))
        scorer = make_scorer(choice.way, subject, "bfloat16" if choice.against_bfloat16 == "" else "float32")
        spread = range(0, len(layers), -(-len(layers) // _PROBES))
        scorer.score(halves, [{0: lowest[0]}])  # warms up
        started = time.perf_counter()
        scorer.score(halves, [{index: lowest[index] if halves[index] != lowest[index] else None} for index in spread])
        return (time.perf_counter() - started) / len(spread), choice
    finally:
        torch.set_num_threads(before)


def _noise(layer: Layer, scheme: Scheme, offered: Sequence[Rank]) -> Factors:
    """Factors of noise, without a decomposition where that is easy."""
    if not isinstance(scheme, ChannelSVD | SpatialSVD):
        return scheme.factorise(layer, torch.randn(layer.dense.weight_shape) * 1e-2, ranks=offered)
    m, n = scheme.matrix_shape(layer)
    return Factors.of_matrix(torch.randn(min(m, n), n) * 1e-2, torch.randn(min(m, n), m) * 1e-2, torch.ones(min(m, n)))


def _evaluators(settings: ClusterSettings) -> int:
    if settings.evaluators != "auto":
        return int(settings.evaluators)
    if settings.address or os.environ.get("RAY_ADDRESS"):
        with connect(settings) as cluster:
            return cluster.evaluators_that_fit(settings.threads_per_evaluator, settings.gpus_per_evaluator)
    by_cpus = (os.cpu_count() or 1) // settings.threads_per_evaluator
    gpus = settings.gpus_per_evaluator
    return max(1, min(by_cpus, int(torch.cuda.device_count() / gpus)) if gpus else by_cpus)


def show_plan(prepared: Prepared, plan: Plan, console: Console) -> None:
    """Prints the plan."""
    for table in (_layer_table(prepared, console), *_left_out_tables(prepared), _cost_table(prepared)):
        console.print(table)
    least = "" if plan.complete else "at least "
    console.print(
        f"search: {prepared.config.search.method}, {least}{plan.candidates:,} candidates (a dry run with made-up "
        f"scores; the real number differs), {plan.seconds_per_candidate * 1e3:,.3g} ms each here, "
        f"{plan.evaluators} evaluator{'s' * (plan.evaluators != 1)}: {least}about {duration(plan.seconds)}"
        + ("; candidates that are stopped early take less" if _some_stop_early(prepared, plan) else ""),
        highlight=False,
    )
    choice = plan.choice
    if plan.elsewhere:
        console.print("timed on this machine's processor, as no GPU is seen here", highlight=False)
    if choice.reason:
        console.print(f"{slower_way(choice.way)}, because {choice.reason}", highlight=False)
    if choice.against_bfloat16 is not None:
        console.print(screening_precision(choice.against_bfloat16), highlight=False)


def _some_stop_early(prepared: Prepared, plan: Plan) -> bool:
    """Whether the search may leave candidates before their last sample; its time is that of scoring all to the end."""
    return prepared.config.search.stops_early and plan.candidates > 1 and plan.choice.way != "plain"


def _layer_table(prepared: Prepared, console: Console) -> Table:
    """The layers; where the terminal is narrow, only the costs that the budget limits, then no shapes either."""
    limits = {limit.cost for limit in prepared.config.limits}
    limited = [name for name in COST_NAMES if name in limits]
    longest = max(len(_names(layer)) for layer in prepared.found.layers)
    for costs in (COST_NAMES, limited):
        table = _layers(prepared, costs, shapes=True)
        unbroken = Measurement.get(console, console.options.update(width=_ENDLESS), table).maximum
        if unbroken - max(0, longest - _NAME_WIDTH) <= console.width:
            return table
    return _layers(prepared, limited, shapes=False)


def _layers(prepared: Prepared, costs: Sequence[str], *, shapes: bool) -> Table:
    space = prepared.space
    schemes = ", ".join(sorted({scheme.name for scheme in prepared.schemes}))
    table = _table(f"{len(space.layers)} layers, {schemes}", "layer")
    if shapes:
        table.add_column("weight", no_wrap=True)
    for heading in ("full rank", "break-even", *costs):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (layer, ranks) in enumerate(zip(prepared.found.layers, space.layers, strict=True)):
        table.add_row(
            _names(layer),
            *(["x".join(map(str, layer.dense.weight_shape))] if shapes else []),
            str(ranks.full),
            str(ranks.useful) if ranks.useful else "stays dense",
            *(_short(space.costs[name].of(index, None)) for name in costs),
        )
    return table


def _names(layer: Layer) -> str:
    return " = ".join((layer.name, *layer.aliases))


def _left_out_tables(prepared: Prepared) -> list[Table]:
    left_out = prepared.found.left_out
    if not left_out:
        return []
    table = _table(f"{len(left_out)} left out", "layer")
    table.add_column("reason")
    for one in left_out:
        table.add_row(one.name or "(the model)", one.reason)
    return [table]


def _cost_table(prepared: Prepared) -> Table:
    """Every cost, and how far it can be brought down: a layer may stay dense where rank 1 costs more."""
    space = prepared.space
    table = _table("costs of convolutions and linear layers", "cost")
    for heading in ("these layers", "whole network", "C(r) in reach"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in COST_NAMES:
        least = space.compression(name, _cheapest(space, name))
        table.add_row(
            name,
            f"{space.dense_cost[name]:,.0f}",
            f"{space.network_cost(name, space.dense):,.0f}",
            f"up to {least:.4f}" if least > 0 else "no rank lowers it",
        )
    return table


def _cheapest(space: RankSpace, name: str) -> RankVector:
    """The rank vector with the lowest cost: the lowest rung in every layer that it makes cheaper."""
    of = space.costs[name].of
    lowest = [layer.at(1) for layer in space.layers]
    return tuple(rank if of(index, rank) < of(index, None) else None for index, rank in enumerate(lowest))


def _table(title: str, first: str) -> Table:
    """A table without frame, whose first column alone wraps: its names may be long, the numbers are not."""
    table = Table(title=f"\n{title}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    return table


def _short(count: float) -> str:
    """A count with three digits: `432`, `2.36 M`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"
