"""Preparation: from a config to everything a search needs, with every mistake found before Ray starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from orchestrator.config.schema import Config
from orchestrator.hardware.devices import device_named, devices_of
from orchestrator.judging import DenseOnTest
from orchestrator.searches.contract import Problem
from search_spaces.budgets import Budget, Limit
from search_spaces.costs import COST_NAMES, rank_space
from search_spaces.errors import ConfigError
from search_spaces.latency import limited_device
from search_spaces.rank_space import RankSpace
from search_spaces.registry import nearest
from search_spaces.schemes.contract import Factors, Scheme
from search_spaces.schemes.registry import schemes
from search_spaces.survey import Survey, survey
from workers.batch import Batch, logits, run_model
from workers.batch_norms import check_batch_statistics, normalise_by_batch
from workers.causes import cause
from workers.checkpoint import fingerprint, load_checkpoint
from workers.datasets import PreparedDataset, check_labels, open_dataset
from workers.import_path import build, import_object
from workers.new_classes import with_classes
from workers.scorer import judge_in_slices
from workers.shared_tensors import adopt, skeleton, weights_of
from workers.splits import collect, data_fingerprint, draw_calibration, draw_validation
from workers.subject import Subject
from workers.ways import Way

__all__ = ["Prepared", "build_model", "prepare", "screening_precision", "slower_way", "static_limits"]


STATISTICS_SLICE = 256
"""Samples per forward pass that takes batch norms' statistics, where the config gives no slice size."""


@dataclass(frozen=True)
class Prepared:
    """A checked config with what it names.

    Attributes:
        model: the dense network in eval mode, on the CPU.
        found: its layers, and those left out.
        schemes: one per layer.
        problem: rank space, budget, objective and seed. Limits on latency are added once devices were timed.
        validation: the batch that candidates are scored on.
        test: the test data, or None.
        fingerprints: of the model's weights and of the validation batch: a resumed run must find the same.
        calibration: the unlabelled batch that layers are fitted on, where the search needs one.
        dense_on_test: shared by all that share model and test data.
    """

    config: Config
    model: nn.Module
    found: Survey
    schemes: tuple[Scheme, ...]
    problem: Problem
    validation: Batch
    test: PreparedDataset | None
    fingerprints: dict[str, str]
    calibration: Batch | None = None
    dense_on_test: DenseOnTest = field(default_factory=DenseOnTest, compare=False)

    def subject(self, factors: Mapping[str, Factors]) -> Subject:
        """What is scored, in this process.

        Args:
            factors: by layer name.
        """
        weights = weights_of(self.model)

        def fresh() -> nn.Module:
            model = adopt(skeleton(self.model), weights)
            if self.batch_statistics:
                normalise_by_batch(model)
            return model

        return Subject(
            fresh,
            self.found.layers,
            self.schemes,
            factors,
            self.validation,
            import_object(self.config.metric, "metric"),
            len(self.validation) if self.batch_statistics else self.config.data.slice_size,
        )

    @property
    def calibration_parts(self) -> Sequence[Batch]:
        """The calibration batch in parts of about equal size: batch norms' statistics count each part the same."""
        assert self.calibration is not None
        most = self.config.data.slice_size or STATISTICS_SLICE
        parts = -(-len(self.calibration) // most)
        return list(self.calibration.split(-(-len(self.calibration) // parts)))

    @property
    def batch_statistics(self) -> bool:
        """Whether candidates are normalised by the validation batch itself."""
        return self.config.search.batch_norm == "reestimated"

    @property
    def space(self) -> RankSpace:
        """The rank space."""
        return self.problem.space


def build_model(config: Config) -> nn.Module:
    """The config's network in eval mode, with its checkpoint.

    Raises:
        ConfigError: it cannot be built or its checkpoint does not fit.
    """
    model: nn.Module = build(config.model.build, config.model.arguments, "model.build", expected=nn.Module)
    if config.model.checkpoint is not None:
        load_checkpoint(model, config.model.checkpoint)
    if config.model.new_classes is not None:
        model = with_classes(model, config.model.new_classes, config.search.seed)
    return model.cpu().eval().requires_grad_(False)


def prepare(config: Config) -> Prepared:
    """Builds and checks everything that a config names.

    Raises:
        ConfigError: naming the key or file, what is wrong, and what would be right.
    """
    _check_limits(config)
    scheme = schemes().get(config.search.scheme, "search.scheme")
    import_object(config.metric, "metric")
    model = build_model(config)
    fingerprints = {"model": fingerprint(model)}  # before it runs: some models write to themselves
    train = _open(config, config.data.train, "data.train")
    drawn = draw_validation(train, config.data.validation_size, config.search.seed)
    validation = collect(train, drawn, "data.train")
    fingerprints["data"] = data_fingerprint(validation)
    calibration = None
    if config.search.needs_calibration:
        others = draw_calibration(train, config.data.calibration_size, config.search.seed, drawn)
        calibration = collect(train, others, "data.train")
    test = None if config.data.test is None else _open(config, config.data.test, "data.test")
    _check_fit(config, model, validation, train, test)
    example = validation.example()
    found = survey(
        model,
        lambda network: run_model(network, example.inputs),
        include=config.search.include,
        exclude=config.search.exclude,
    )
    chosen = (scheme,) * len(found.layers)
    static = static_limits(config)
    # Where only latency is limited, multiply-accumulates say which ranks are worth measuring.
    space = rank_space(found, chosen, binding=[limit.cost for limit in static] or ["macs"])
    problem = Problem(space, Budget.of(static, space), config.search.objective, config.search.seed)
    prepared = Prepared(config, model, found, chosen, problem, validation, test, fingerprints, calibration)
    _check_calibration(prepared)
    return prepared


def static_limits(config: Config) -> list[Limit]:
    """The budget's limits that shapes alone decide on."""
    return [limit for limit in config.limits if limited_device(limit.cost) is None]


def slower_way(way: Way) -> str:
    """What it means that candidates are not scored in the fastest way."""
    if way == "plain":
        return "every candidate takes a whole forward pass"
    if way == "resumed":
        return "every candidate goes on alone from the changed layer, which leaves much of a GPU idle"
    return (
        "every candidate runs the model's own forward, with its parent's outputs of the layers before the changed one"
    )


def screening_precision(reason: str) -> str:
    """In which precision candidates are screened where bfloat16 was asked for.

    Args:
        reason: against it; empty for none.
    """
    if reason:
        return f"candidates are screened in float32, not in bfloat16, because {reason}"
    return "candidates are screened in bfloat16; the best are scored again in float32"


def _check_limits(config: Config) -> None:
    """Every limit is on a cost that there is, of a device that there is.

    Raises:
        ConfigError: one is not.
    """
    for limit in config.limits:
        device, key = limited_device(limit.cost), f"search.budget.{limit.cost}"
        if device is not None:
            device_named(devices_of(config.devices), device, key)
        elif limit.cost not in COST_NAMES:
            raise ConfigError(key, f"unknown cost{nearest(limit.cost, [*COST_NAMES, 'latency', 'throughput'])}")


def _open(config: Config, source: dict[str, Any], key: str) -> PreparedDataset:
    normalize = None if config.data.normalize is None else config.data.normalize.model_dump()
    return open_dataset(source, normalize, config.data.image_size, key)


def _check_fit(
    config: Config, model: nn.Module, validation: Batch, train: PreparedDataset, test: PreparedDataset | None
) -> None:
    """The model takes the samples, every label is one of its classes, and the metric judges its outputs.

    The test data are used at the very end of a search; a search should not end with an error.
    """
    classes = _classes(model, validation.example(), "data.train")
    check_labels(validation.labels, classes, "data.train")
    if train.labels is not None:
        check_labels(train.labels, classes, "data.train")
    if test is not None:
        first = collect(test, [0], "data.test")
        _classes(model, first, "data.test")
        check_labels(first.labels if test.labels is None else test.labels, classes, "data.test")
    _check_metric(config, model, validation)


def _check_calibration(prepared: Prepared) -> None:
    """What layers are fitted to are numbers, and every batch that batch norms normalise by has a variance.

    Both are only needed late in a search; a search should not end with an error.
    """
    if prepared.calibration is not None:
        inputs = prepared.calibration.inputs
        for tensor in inputs.values() if isinstance(inputs, dict) else (inputs,):
            if not bool(torch.isfinite(tensor).all()):
                raise ConfigError("data.train", "the calibration batch has NaN or infinite values; mend these samples")
    if prepared.batch_statistics:
        network = prepared.subject({}).model()
        check_batch_statistics(network, prepared.validation.inputs)
        smallest = min(prepared.calibration_parts, key=len)
        check_batch_statistics(network, smallest.inputs, "data.calibration_size")


def _classes(model: nn.Module, example: Batch, key: str) -> int:
    """How many classes the model tells apart: it is run on one sample."""
    try:
        with torch.inference_mode():
            outputs = run_model(model, example.inputs)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            key, f"the model does not take inputs of {_shapes(example)}: {cause(error)}; data.image_size resizes images"
        ) from None
    scores = logits(outputs)
    if scores.dim() < 2:
        raise ConfigError("model", f"its output for one sample has the shape {tuple(scores.shape)}, not (1, classes)")
    return int(scores.shape[-1])


def _check_metric(config: Config, model: nn.Module, validation: Batch) -> None:
    """The dense network can be judged on the whole validation batch."""
    metric = import_object(config.metric, "metric")

    def judged(outputs: object, batch: Batch) -> float:
        try:
            value = float(metric(outputs, batch))
        except Exception as error:
            raise ConfigError(
                "metric", f"{config.metric} raised {cause(error)}; give a function of (outputs, batch)"
            ) from None
        if math.isnan(value):
            raise ConfigError("metric", f"{config.metric} gives NaN for the dense network")
        return value

    try:
        values = judge_in_slices(model, validation.split(config.data.slice_size or len(validation)), judged)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            "model", f"its forward raised {cause(error)} on the validation batch; data.slice_size makes it smaller"
        ) from None
    if values is None:
        raise ConfigError("model", "the dense network's outputs are not finite on the validation batch")


def _shapes(batch: Batch) -> str:
    if isinstance(batch.inputs, dict):
        return ", ".join(f"{name} {tuple(tensor.shape[1:])}" for name, tensor in batch.inputs.items())
    return " x ".join(str(size) for size in batch.inputs.shape[1:])
