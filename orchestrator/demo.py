"""The demo: the whole road on scikit-learn's digits, in about a minute on two cores."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import nn

from orchestrator import api
from orchestrator.progress import show_progress
from workers.digits import digits
from workers.models import digits_cnn
from workers.splits import collect

__all__ = ["run_demo", "train_digits"]


def run_demo(run_dir: str | None, console: Console) -> api.Run:
    """Trains the network, searches with mBS on up to two evaluators, and says what came out."""
    location = run_dir or api.new_run_location("demo")
    started = time.monotonic()
    checkpoint = Path(f"{location}.dense.safetensors")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    console.print("training a small network on scikit-learn's digits ...", highlight=False)
    network = train_digits(seed=0)
    safetensors.torch.save_file(network.state_dict(), checkpoint)
    console.print(f"searching for half the parameters; the run is kept in {location}", highlight=False, soft_wrap=True)
    with show_progress(console) as observer:
        run = api.search(demo_config(checkpoint), location, observer=observer)
    assert run.result is not None
    before, after = (run.result["scores"][which]["test"]["accuracy"] for which in ("dense", "compressed"))
    costs = run.result["costs"]
    console.print(
        f"{costs['parameters']['compression']:.1%} of the parameters and {costs['macs']['compression']:.1%} of the "
        f"MACs are gone; test accuracy {before:.1%} -> {after:.1%}, nothing trained after; "
        f"{run.result['evaluations']:,} candidates scored, {time.monotonic() - started:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"open {location}/report.html", highlight=False, soft_wrap=True)
    return run


def demo_config(checkpoint: Path) -> dict[str, Any]:
    """The embedded default config."""
    return {
        "model": {"build": "workers.models:digits_cnn", "checkpoint": str(checkpoint)},
        "data": {
            "train": {"dataset": "workers.digits:digits", "arguments": {"split": "train"}},
            "test": {"dataset": "workers.digits:digits", "arguments": {"split": "test"}},
            "validation_size": 512,
        },
        "search": {
            "method": "mbs",
            "budget": {"parameters": 0.5},
            "objective": "cross_entropy",
            "tolerance": 0.01,
            "settings": [{"step": 8, "beam_size": 3}, {"step": 4, "beam_size": 3}],
        },
        "cluster": {"evaluators": min(2, os.cpu_count() or 1)},
    }


def train_digits(seed: int, epochs: int = 12) -> nn.Module:
    """Trains `digits_cnn` on the training split; deterministic for a seed and a thread count."""
    torch.manual_seed(seed)
    data = collect(digits("train"), None)
    network = digits_cnn()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = epochs * (len(data) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    assert isinstance(data.inputs, torch.Tensor)
    for _ in range(epochs):
        order = torch.randperm(len(data))
        for start in range(0, len(data) - 63, 64):
            chosen = order[start : start + 64]
            loss = nn.functional.cross_entropy(network(data.inputs[chosen]), data.labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
