"""Settings that the methods with a trained selection share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workers.training.fine_tuning import FineTuningSettings
from workers.training.sgd import SGDSettings

__all__ = ["SelectionSettings"]


class SelectionSettings(FineTuningSettings):
    """What is learned before fine-tuning, and how long; the rest is fine-tuning's.

    Attributes:
        selection_epochs: in which ranks are learned.
        selection_learning_rate: the highest meanwhile; it falls to 0 along half a cosine.
    """

    selection_epochs: Annotated[int, Field(ge=1)] = 10
    selection_learning_rate: Annotated[float, Field(gt=0)] = 0.01

    def selecting(self) -> SGDSettings:
        """The training loop's settings during the selection: batches, augmentation and precision are fine-tuning's."""
        given = {name: getattr(self, name) for name in SGDSettings.model_fields}
        changed = {
            "epochs": self.selection_epochs,
            "learning_rate": self.selection_learning_rate,
            "warm_up_epochs": 0.0,
            "distillation": 0.0,
        }
        return SGDSettings(**{**given, **changed})
