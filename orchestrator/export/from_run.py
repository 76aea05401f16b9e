"""Exports the compressed network of a finished run, or of a sweep's trial."""

from __future__ import annotations

from pathlib import Path

from orchestrator.api import load_compressed
from orchestrator.export.exporting import export_model
from orchestrator.export.formats import formats
from orchestrator.run_directory import RunDirectory
from orchestrator.sweeps.trained import load_trained
from workers.datasets import open_dataset
from workers.splits import collect

__all__ = ["export_run", "export_trial"]


def export_run(run: str, format: str, output: Path | None = None) -> Path:
    """Exports the compressed network of a run; two training samples are the example it is checked on.

    Args:
        run: run directory or URI.
        format: `safetensors`, `torch-export` or `onnx`.
        output: the file; by default named after the run, in the current folder.

    Returns:
        The file that was written.

    Raises:
        ConfigError: no finished run, no such format, or a network that the format cannot hold.
    """
    kind = formats().get(format, "--format")
    directory = RunDirectory.open(run)
    network = load_compressed(run)
    config, result = directory.config(), directory.result() or {}
    normalize = None if config.data.normalize is None else config.data.normalize.model_dump()
    samples = open_dataset(config.data.train, normalize, config.data.image_size, "data.train")
    path = output or Path(run.rstrip("/").rpartition("/")[2] + kind.suffix)
    noted = {name: result[name] for name in ("ranks", "schemes")}
    export_model(network, collect(samples, [0, 1]).inputs, format, path, metadata=noted)
    return path


def export_trial(sweep: str, trial: str, format: str, output: Path | None = None) -> Path:
    """Exports the network that a trial has trained.

    Args:
        sweep: its directory or URI.
        trial: its name.
        format: `safetensors`, `torch-export` or `onnx`.
        output: the file; by default named after the trial, in the current folder.

    Returns:
        The file that was written.

    Raises:
        ConfigError: no finished trial, no such format, or a network that the format cannot hold.
    """
    kind = formats().get(format, "--format")
    trained = load_trained(sweep, trial)
    path = output or Path(trial + kind.suffix)
    noted = {"ranks": trained.ranks, "schemes": trained.schemes}
    export_model(trained.network, trained.example, format, path, metadata=noted)
    return path
