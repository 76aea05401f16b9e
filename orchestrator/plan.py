"""The plan: what a search would do, before it does it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from rich.console import Console, Group
from rich.table import Table

from orchestrator.config.schema import ClusterSettings
from orchestrator.preparation import Prepared
from orchestrator.progress import duration
from orchestrator.ray_cluster import connect
from orchestrator.searches.registry import search_methods
from search_spaces.candidates import Candidate, Score
from search_spaces.costs import COST_NAMES
from search_spaces.layers import Layer
from search_spaces.schemes.contract import Factors, Scheme
from workers.import_path import import_object
from workers.scorer import PlainScorer
from workers.shared_tensors import adopt, skeleton, weights_of

__all__ = ["Plan", "make_plan", "show_plan"]

_PROBES = 3
_DRY_RUN_S = 20.0


@dataclass(frozen=True)
class Plan:
    """What a search would take.

    Attributes:
        candidates: how many it would score: a dry run of the search itself with made-up scores.
        complete: whether the dry run came to its end; if not, there are at least that many.
        seconds_per_candidate: median of a few, measured here with the threads of one evaluator.
        evaluators: how many the cluster holds.
    """

    candidates: int
    complete: bool
    seconds_per_candidate: float
    evaluators: int

    @property
    def seconds(self) -> float:
        """Predicted seconds of scoring."""
        return self.candidates * self.seconds_per_candidate / self.evaluators


def make_plan(prepared: Prepared) -> Plan:
    """Counts candidates, times a few of them, and looks at the cluster (a running one only if it is configured)."""
    candidates, complete = _dry_run(prepared)
    return Plan(candidates, complete, _seconds_per_candidate(prepared), _evaluators(prepared.config.cluster))


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
    return Score(candidate.ranks, {"accuracy": 1 - compression, "loss": compression, "kl": compression})


def _seconds_per_candidate(prepared: Prepared) -> float:
    """Median seconds of a few candidates at half their useful ranks; factors of noise take as long as real ones."""
    layers, space = prepared.found.layers, prepared.space
    factors = {layer.name: _noise(layer, scheme) for layer, scheme in zip(layers, prepared.schemes, strict=True)}
    threads, before = prepared.config.cluster.threads_per_evaluator, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        scorer = PlainScorer(
            adopt(skeleton(prepared.model), weights_of(prepared.model)),
            layers,
            prepared.schemes,
            factors,
            prepared.validation,
            import_object(prepared.config.metric, "metric"),
            prepared.config.data.slice_size,
        )
        halves = space.normalise([max(1, layer.useful // 2) for layer in space.layers])
        scores = scorer.score(halves, [{}] * (_PROBES + 1))[1:]  # the first one warms up
    finally:
        torch.set_num_threads(before)
    return sorted(score.seconds for score in scores)[_PROBES // 2]


def _noise(layer: Layer, scheme: Scheme) -> Factors:
    m, n = scheme.matrix_shape(layer)
    return Factors(torch.randn(min(m, n), n) * 1e-2, torch.randn(min(m, n), m) * 1e-2, torch.ones(min(m, n)))


def _evaluators(settings: ClusterSettings) -> int:
    if settings.evaluators != "auto":
        return int(settings.evaluators)
    if settings.address or os.environ.get("RAY_ADDRESS"):
        with connect(settings) as cluster:
            return cluster.evaluators_that_fit(settings.threads_per_evaluator)
    return max(1, (os.cpu_count() or 1) // settings.threads_per_evaluator)


def show_plan(prepared: Prepared, plan: Plan, console: Console) -> None:
    """Prints the plan."""
    console.print(Group(_layer_table(prepared), *_left_out_tables(prepared)))
    space = prepared.space
    for name in COST_NAMES:
        total = space.network_cost(name, space.dense)
        console.print(
            f"{name}: {space.dense_cost[name]:,.0f} in the layers above, {total:,.0f} in all convolutions and linear layers; "
            f"compression C(r) up to {space.compression(name, space.smallest):.4f} is within reach",
            highlight=False,
        )
    least = "" if plan.complete else "at least "
    console.print(
        f"search: {prepared.config.search.method}, {least}{plan.candidates:,} candidates (a dry run with made-up scores; "
        f"the real number differs), {plan.seconds_per_candidate * 1e3:,.0f} ms each here, "
        f"{plan.evaluators} evaluator{'s' * (plan.evaluators != 1)}: {least}about {duration(plan.seconds)}",
        highlight=False,
    )


def _layer_table(prepared: Prepared) -> Table:
    space = prepared.space
    table = Table(title=f"{len(space.layers)} layers", title_justify="left")
    for heading in ("layer", "scheme", "weight"):
        table.add_column(heading, no_wrap=heading == "layer")
    for heading in ("full rank", "break-even", *COST_NAMES):
        table.add_column(heading, justify="right")
    for index, (layer, scheme, ranks) in enumerate(
        zip(prepared.found.layers, prepared.schemes, space.layers, strict=True)
    ):
        table.add_row(
            " = ".join((layer.name, *layer.aliases)),
            scheme.name,
            " x ".join(map(str, layer.dense.weight_shape)),
            str(ranks.full),
            str(ranks.useful) if ranks.useful else "stays dense",
            *(f"{space.costs[name].of(index, None):,.0f}" for name in COST_NAMES),
        )
    return table


def _left_out_tables(prepared: Prepared) -> list[Table]:
    if not prepared.found.left_out:
        return []
    table = Table("left out", "reason", title=f"{len(prepared.found.left_out)} left out", title_justify="left")
    for one in prepared.found.left_out:
        table.add_row(one.name, one.reason)
    return [table]
