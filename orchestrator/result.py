"""The result of a search: the compressed network, and `result.json`, which every method writes alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from torch import nn

from orchestrator.judging import network_scores
from orchestrator.preparation import Prepared
from orchestrator.searches.contract import Answer
from search_spaces.assembly import assemble
from search_spaces.schemes.contract import Factors
from workers.batch_norms import reestimate

__all__ = ["Effort", "build_result", "compressed_network", "safetensors_bytes"]


@dataclass(frozen=True)
class Effort:
    """What a search took.

    Attributes:
        evaluations: scores that it used.
        in_bfloat16: those of them that are in bfloat16: all levels where they are screened so. The others, those of the
            best few at the end, are in float32.
        taken_over: those of them that another search on the same evaluators had scored.
        stopped: candidates whose scoring was stopped, as they could not be among the best any more; not in
            `evaluations`.
        skipped: candidates that screening left unscored.
        seconds: wall time over all its processes. Searches on the same evaluators divide it: their parts add up to
            what passed, each in proportion to what its candidates took (see `orchestrator/shared_time.py`).
    """

    evaluations: int
    in_bfloat16: int
    taken_over: int
    stopped: int
    skipped: int
    seconds: float


def compressed_network(prepared: Prepared, answer: Answer, factors: Mapping[str, Factors]) -> nn.Module:
    """The answer as an ordinary module, its batch norms' statistics re-estimated where the config says so."""
    network = assemble(prepared.model, prepared.found.layers, prepared.schemes, answer.ranks, factors)
    if prepared.batch_statistics:
        reestimate(network, (part.inputs for part in prepared.calibration_parts))
    return network


def safetensors_bytes(prepared: Prepared, answer: Answer, network: nn.Module) -> bytes:
    """The compressed network's state dict; ranks and schemes by layer are in the file's metadata."""
    names = [layer.name for layer in prepared.found.layers]
    metadata = {
        "ranks": json.dumps(dict(zip(names, answer.ranks, strict=True))),
        "schemes": json.dumps({name: scheme.name for name, scheme in zip(names, prepared.schemes, strict=True)}),
    }
    # Tied tensors are written once each: the format refuses shared memory.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    return safetensors.torch.save(tensors, metadata)


def build_result(
    prepared: Prepared,
    answer: Answer,
    network: nn.Module,
    effort: Effort,
    origin: Mapping[str, Any],
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`result.json`; scores before and after are taken by plain forward passes of the two networks.

    Args:
        effort: what it took.
        origin: provenance.
        latency: by device, predicted and measured; see `LatencyModel.record`.
    """
    space, layers = prepared.space, prepared.found.layers
    search = prepared.config.search
    return {
        "method": search.method,
        "seed": search.seed,
        "objective": search.objective,
        "norm": search.norm,
        "last_stage": search.last_stage,
        "bias": search.bias,
        "batch_norm": search.batch_norm,
        "budget": dict(search.budget),
        "in_window": answer.in_window,
        "search": answer.search,
        "note": dict(answer.note),
        "ranks": {layer.name: rank for layer, rank in zip(layers, answer.ranks, strict=True)},
        "schemes": {layer.name: scheme.name for layer, scheme in zip(layers, prepared.schemes, strict=True)},
        "costs": {
            name: {
                "dense": space.dense_cost[name],
                "compressed": space.cost(name, answer.ranks),
                "compression": space.compression(name, answer.ranks),
                "network": {
                    "dense": space.network_cost(name, space.dense),
                    "compressed": space.network_cost(name, answer.ranks),
                },
            }
            for name in space.costs
        },
        "scores": {
            "dense": network_scores(prepared, prepared.model),
            "compressed": network_scores(prepared, network),
        },
        "metric": prepared.config.metric,
        **asdict(effort),
        **({} if latency is None else {"latency": dict(latency)}),
        "provenance": dict(origin),
    }
