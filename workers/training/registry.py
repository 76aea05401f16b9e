"""The training methods by name: the built-in ones and those that other packages register."""

from __future__ import annotations

from functools import cache

from search_spaces.registry import Registry
from workers.training.bsr import BSRSettings, start_bsr
from workers.training.ca import CASettings, start_ca
from workers.training.contract import TrainingMethod
from workers.training.given_ranks import GivenRanksSettings, start_fine_tuning
from workers.training.haloc import HalocSettings, start_haloc
from workers.training.lc import LCSettings, start_lc
from workers.training.less import LessSettings, start_less
from workers.training.transfer_masks import TransferMasksSettings, start_transfer_masks

__all__ = ["trainables"]


@cache
def trainables() -> Registry[TrainingMethod]:
    """Training methods by name; other packages add theirs through the entry point group `rankray.trainables`."""
    built_in = {
        "bsr": TrainingMethod(BSRSettings, start_bsr, needs_ranks=True),
        "ca": TrainingMethod(CASettings, start_ca),
        "fine_tuning": TrainingMethod(GivenRanksSettings, start_fine_tuning, needs_ranks=True),
        "haloc": TrainingMethod(HalocSettings, start_haloc),
        "lc": TrainingMethod(LCSettings, start_lc),
        "less": TrainingMethod(LessSettings, start_less),
        "transfer_masks": TrainingMethod(TransferMasksSettings, start_transfer_masks),
    }
    return Registry("rankray.trainables", "training method", built_in)
