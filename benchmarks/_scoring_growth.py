"""How the time for a candidate grows with the layers, the beam size and the batch; weights and images are random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from _record import show
from _scoring_compare import Turns, made_up_groups
from _scoring_network import Network, random_network

from workers.models import CifarResNet

__all__ = ["QUICK", "GrowthSize", "measure", "show_found"]


@dataclass(frozen=True)
class GrowthSize:
    """How much is measured.

    Attributes:
        depths: of the CIFAR ResNets.
        imagenet: torchvision's networks, on images of `pixels` x `pixels`.
        images, imagenet_images: in the batch.
        depth: of the CIFAR ResNet on which beam sizes and batches are tried.
        beams, batches: what is tried there.
        level: of the search whose children are scored.
        parents: whose children are scored, where the beam size is not what is tried.
        plain_candidates, repeats: as in `ExactSize`.
    """

    depths: tuple[int, ...] = (20, 32, 56)
    imagenet: tuple[str, ...] = ("resnet18", "resnet50")
    pixels: int = 224
    images: int = 256
    imagenet_images: int = 16
    depth: int = 56
    beams: tuple[int, ...] = (1, 5, 10)
    batches: tuple[int, ...] = (64, 256, 1024)
    level: int = 20
    parents: int = 2
    plain_candidates: int = 6
    repeats: int = 3


QUICK = GrowthSize(
    depths=(8, 20),
    imagenet=("resnet18",),
    pixels=64,
    images=16,
    imagenet_images=2,
    depth=8,
    beams=(1, 2),
    batches=(4, 16),
    level=3,
    parents=1,
    plain_candidates=2,
    repeats=2,
)


def measure(size: GrowthSize, keep: Callable[[dict[str, Any]], None], former: Mapping[str, Any]) -> dict[str, Any]:
    """Tables `layers`, `beam` and `batch`, each a list of rows by what grows.

    Args:
        keep: is given what was found so far, after every row.
        former: what an interrupted run had found; its rows are not measured again.
    """
    interrupted = {} if former.get("finished") else former
    found: dict[str, Any] = {table: {**interrupted.get(table, {})} for table in ("layers", "beam", "batch")}
    for table, name, make, parents in _cases(size):
        if name not in found[table]:
            network = make()
            groups = made_up_groups(network, size.level, parents)
            compared = Turns(network).compare(groups, size.plain_candidates, size.repeats)
            found[table][name] = {"layers": len(network.prepared.found.layers), **compared.to_json()}
            keep(found)
    return found


def _cases(size: GrowthSize) -> list[tuple[str, str, Callable[[], Network], int]]:
    """Table, row, how to make the network, and how many parents' children it is timed on."""
    by_depth = [("layers", f"cifar resnet{depth}", partial(_cifar, depth, size.images)) for depth in size.depths]
    by_name = [("layers", f"imagenet {name}", partial(_imagenet, name, size)) for name in size.imagenet]
    by_batch = [("batch", str(batch), partial(_cifar, size.depth, batch)) for batch in size.batches]
    by_beam = [("beam", str(beam), partial(_cifar, size.depth, size.images, beam), beam) for beam in size.beams]
    return [*((*case, size.parents) for case in (*by_depth, *by_name, *by_batch)), *by_beam]


def _cifar(depth: int, images: int, beam_size: int = 5) -> Network:
    torch.manual_seed(0)
    return random_network(f"resnet{depth}", CifarResNet(depth), images, size=32, classes=10).with_beam(beam_size)


def _imagenet(name: str, size: GrowthSize) -> Network:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    return random_network(name, model, size.imagenet_images, size=size.pixels, classes=1000)


def show_found(found: Mapping[str, Any], size: GrowthSize) -> None:
    """Prints the three tables."""
    titles = {
        "layers": f"By network: {size.images} images; ImageNet: {size.imagenet_images}, {size.pixels} x {size.pixels}",
        "beam": f"By beam size: ResNet-{size.depth}, {size.images} images",
        "batch": f"By batch: ResNet-{size.depth}",
    }
    for table, title in titles.items():
        rows = []
        for name, row in found[table].items():
            quotient = row["ratio"]
            rows.append(
                [
                    name,
                    str(row["layers"]),
                    str(row["candidates"]),
                    f"{1000 * row['fast_seconds']['median']:.1f}",
                    f"{1000 * row['plain_seconds']['median']:.1f}",
                    f"{quotient['ratio']:.2f} ({quotient['lowest']:.2f} to {quotient['highest']:.2f})",
                ]
            )
        show(title, ["", "layers", "candidates", "fast, ms a candidate", "plain, ms", "plain / fast"], rows)
