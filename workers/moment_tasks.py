"""Moments in parallel: one Ray task for each share of the calibration batch, merged in a fixed order on the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.moments import Moment
from workers.evaluator import batch_from
from workers.moments import SLICE_SIZE, MomentSum, finished_moments, sum_moments
from workers.shared_tensors import Stored, adopt, pack, unpack

__all__ = ["SHARE", "gather_moments"]

SHARE = 64
"""Samples of a task. Fixed, so that the sums do not depend on the size of the cluster."""

AHEAD_BYTES = 4 << 30
"""Sums that may lie in the object store before they are merged: large networks' take gigabytes for each share."""


def sum_share(
    skeleton: nn.Module,
    weights: Mapping[str, Stored],
    batch: dict[str, Stored],
    layers: Sequence[Layer],
    share: int,
    threads: int,
    slice_size: int,
) -> dict[str, Stored]:
    """Sums over one share of the batch, as stored tensors.

    Args:
        share: its number.
        threads: torch threads that it may use.

    Raises:
        ConfigError: as `second_moments`.
    """
    torch.set_num_threads(threads)
    model = adopt(skeleton, unpack(weights))
    part = next(islice(batch_from(batch).split(SHARE), share, None))
    return pack(_tensors(sum_moments(model, layers, part, slice_size)))


def gather_moments(
    layers: Sequence[Layer],
    skeleton: ray.ObjectRef[Any],
    weights: ray.ObjectRef[Any],
    batch: ray.ObjectRef[Any],
    samples: int,
    threads: int = 1,
    slice_size: int = SLICE_SIZE,
) -> dict[str, Moment]:
    """Moments of every layer's inputs, as `second_moments` gives them, computed by the cluster.

    The same numbers whatever the cluster: shares are fixed, and are added in their order. The driver holds the sums
    of two shares at a time, however many there are.

    Args:
        layers: of the model.
        skeleton: reference to the model without parameter values.
        weights: reference to its parameters, packed.
        batch: reference to the calibration batch, `pack(batch_to_tensors(batch))`.
        samples: of the batch.
        threads: torch threads of a task; each is booked as a CPU.
        slice_size: samples per forward pass.

    Raises:
        ConfigError: as `second_moments`.
    """
    if samples < 1:
        raise ConfigError("data.calibration_size", "the calibration batch is empty; give at least 1 sample")
    task = ray.remote(num_cpus=threads, max_retries=2)(sum_share)
    starting = (
        task.remote(skeleton, weights, batch, layers, share, threads, slice_size)
        for share in range(-(-samples // SHARE))
    )
    return finished_moments(_merged(starting, _ahead(layers, threads)))


def _merged(starting: Iterator[ray.ObjectRef[Any]], ahead: int) -> dict[str, MomentSum]:
    """Adds the shares up in their order.

    Args:
        starting: references to the shares' sums; taking one starts its task.
        ahead: so many are started before the first one is awaited.
    """
    started = deque(islice(starting, ahead))
    sums: dict[str, MomentSum] = {}
    try:
        while started:
            found = _sums(ray.get(started.popleft()), copied=not sums)
            started.extend(islice(starting, 1))
            for name, part in found.items():
                if name in sums:
                    sums[name].add(part)
                else:
                    sums[name] = part
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, ConfigError) else error from None
    finally:
        for ref in started:
            ray.cancel(ref)
    return sums


def _ahead(layers: Sequence[Layer], threads: int) -> int:
    """Shares that are started before the first one is merged."""
    size = sum(8 * (layer.dense.parameters // layer.dense.out_channels) ** 2 for layer in layers)
    at_once = int(ray.cluster_resources().get("CPU", 1.0)) // threads
    return max(2, min(at_once + 1, AHEAD_BYTES // max(1, size)))


def _tensors(sums: Mapping[str, MomentSum]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, found in sums.items():
        tensors.update({f"second:{name}": found.second, f"total:{name}": found.total})
        tensors[f"patches:{name}"] = torch.tensor(found.patches)
    return tensors


def _sums(stored: Mapping[str, Stored], copied: bool) -> dict[str, MomentSum]:
    """What `_tensors` stored; views of the object store, which must not be written to, unless `copied`."""
    tensors = {name: tensor.clone() if copied else tensor for name, tensor in unpack(stored).items()}
    names = [name.removeprefix("second:") for name in tensors if name.startswith("second:")]
    return {
        name: MomentSum(tensors[f"second:{name}"], tensors[f"total:{name}"], int(tensors[f"patches:{name}"]))
        for name in names
    }
