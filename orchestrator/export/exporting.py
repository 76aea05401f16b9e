"""Exports a network: written under a temporary name, loaded again, compared with the network, and only then named."""

from __future__ import annotations

import copy
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orchestrator.export.contract import Format
from orchestrator.export.formats import formats
from search_spaces.errors import ConfigError
from workers.batch import Inputs, run_model
from workers.capture import tensors_of
from workers.causes import cause

__all__ = ["TOLERANCE", "export_model"]

TOLERANCE = 1e-4
"""How far an export's outputs may be from the network's, relative to the largest output."""


def export_model(
    model: nn.Module,
    example: Inputs,
    format: str,
    path: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network for use on the CPU, in eval mode, with batches of any size.

    `torch-export` and `onnx` run without RankRay. `safetensors` holds weights alone, for `load_compressed` or for
    whoever has the code that builds the network.

    Args:
        model: left as it is.
        example: a batch of inputs `(N, ...)`, or several by name; N may be 1.
        format: `safetensors`, `torch-export` or `onnx`.
        path: the file; replaced if it is there, left as it was if the export fails.
        metadata: what to note in the file (ranks, schemes), each entry as JSON under its own name.

    Raises:
        ConfigError: no such format, a network that the format cannot hold, an export whose outputs are not the
            network's, or a path that cannot be written.

    Example:
        >>> import tempfile
        >>> network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_model(network, torch.zeros(1, 4), "safetensors", Path(folder) / "network.safetensors")
    """
    kind = formats().get(format, "format")
    network = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    checks = [(batch, _outputs(network, batch)) for batch in _batches(example)]
    noted = {name: json.dumps(value) for name, value in (metadata or {}).items()}
    with _whole_file(path, kind.suffix) as temporary:
        try:
            kind.write(network, checks[0][0], noted, temporary)
        except (ConfigError, OSError):
            raise
        except Exception as error:
            raise ConfigError("format", f"the network cannot be written as {format}: {cause(error)}") from error
        for batch, expected in checks:
            _compare(kind, temporary, network, batch, expected)


def _batches(example: Inputs) -> list[Inputs]:
    """The example with at least two samples, and its first sample alone: what an export must get right."""

    def of(change: Any) -> Inputs:
        if isinstance(example, torch.Tensor):
            return change(example.detach().cpu())  # type: ignore[no-any-return]
        return {name: change(tensor.detach().cpu()) for name, tensor in example.items()}

    several = of(lambda tensor: torch.cat([tensor, tensor]) if len(tensor) < 2 else tensor)
    return [several, of(lambda tensor: tensor[:1])]


def _outputs(network: nn.Module, batch: Inputs) -> list[torch.Tensor]:
    """What an export must put out for a batch."""
    with torch.no_grad():
        outputs = tensors_of(run_model(network, batch))
    if not outputs:
        raise ConfigError("model", "its outputs hold no tensor to compare; return tensors, or dicts or tuples of them")
    return outputs


def _compare(kind: Format, path: Path, network: nn.Module, batch: Inputs, expected: list[torch.Tensor]) -> None:
    """Loads what was written and runs it.

    Raises:
        ConfigError: it does not run, or its outputs differ from the expected ones by more than `TOLERANCE`.
    """
    size = f"a batch of {len(tensors_of(batch)[0])}"
    try:
        with torch.no_grad():
            outputs = kind.run(path, network, batch)
    except Exception as error:
        raise ConfigError("format", f"the {kind.name} export does not run on {size}: {cause(error)}") from error
    shapes = [tuple(tensor.shape) for tensor in expected], [tuple(tensor.shape) for tensor in outputs]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "format", f"on {size} the {kind.name} export puts out {shapes[1]} where the network puts out {shapes[0]}"
        )
    difference = max(_difference(one, other) for one, other in zip(expected, outputs, strict=True))
    if not difference <= TOLERANCE:  # a NaN is a difference
        raise ConfigError(
            "format",
            f"on {size} the outputs of the {kind.name} export differ from the network's by {difference:.1e} of their "
            f"scale ({TOLERANCE:.0e} is allowed); no file was written",
        )


def _difference(expected: torch.Tensor, output: torch.Tensor) -> float:
    """Largest difference relative to the largest finite expected value; equal infinities do not differ."""
    expected, output = expected.double(), output.double()
    scale = expected[expected.isfinite()].abs().amax().item() if expected.isfinite().any() else 0.0
    gaps = (expected - output).abs().masked_fill(expected == output, 0.0)
    return gaps.amax().item() / (scale or 1.0) if gaps.numel() else 0.0


@contextmanager
def _whole_file(path: Path, suffix: str) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` at the end; an error leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    try:
        if path.is_dir():
            raise ConfigError(str(path), "is a folder; name a file")
        if not path.parent.is_dir():
            raise ConfigError(str(path), "its folder does not exist; make it first")
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself reaches the disk
        finally:
            os.close(folder)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else cause(error)
        raise ConfigError(str(path), f"cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
