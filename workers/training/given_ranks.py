"""`fine_tuning`: a rank vector from any search, factorised as it is and fine-tuned."""

from __future__ import annotations

from torch import nn

from search_spaces.rank_space import RankVector
from workers.training.contract import Compressed, Metrics, Setup, State, check_setup
from workers.training.fine_tuning import FineTuningSettings
from workers.training.layer_losses import fitted_ranks
from workers.training.selection import SelectThenFineTune
from workers.training.truncation import Norm, architecture, truncate

__all__ = ["GivenRanks", "GivenRanksSettings", "start_fine_tuning"]


class GivenRanksSettings(FineTuningSettings):
    """How a given rank vector is fine-tuned.

    Attributes:
        norm: what the truncation before it minimises.
    """

    norm: Norm = "weight"


class GivenRanks:
    """A selection that takes no epochs."""

    epochs = 0

    def __init__(self, setup: Setup, ranks: RankVector, norm: Norm) -> None:
        self._setup, self._ranks, self._norm = setup, ranks, norm

    def step(self) -> Metrics:
        """There is none."""
        raise RuntimeError("given ranks take no epochs")

    def state(self) -> State:
        """Nothing: the ranks follow from the set-up."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to restore."""

    def compress(self) -> Compressed:
        """The dense network, truncated."""
        return truncate(self._setup.network, self._setup, self._ranks, self._norm)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """Cascades in the layers' places."""
        return architecture(self._setup, compressed.ranks)


def start_fine_tuning(settings: GivenRanksSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: the set-up has no ranks, or samples that do not fit the network.
    """
    check_setup(setup, "fine_tuning", needs_ranks=True)
    assert setup.ranks is not None
    selection = GivenRanks(setup, fitted_ranks(setup, setup.ranks), settings.norm)
    return SelectThenFineTune("fine_tuning", selection, settings, setup)
