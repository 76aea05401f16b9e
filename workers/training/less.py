"""`less`: filters and ranks learned together under a budget (LeSS, arXiv 2309.13077; Eo's thesis, chapter 4).

The dense weights stay as they are while two things are learned: a mask for every filter and a threshold for the
singular values of every layer,

    W' = SVT(diag(sigma_s(m)) W, gamma),    min over m, gamma of CE + lambda (B - B_d)^2

with B the share of the dense network's cost that the soft number of filters, sum sigma_s(m), and the soft rank,
sum tanh(tau relu(s_i - gamma)), cost. Then masks and ranks become whole, filters are removed, weights truncated by SVD,
and the network is fine-tuned.

What the sources leave open, and what is done here:

- Coupled filters (residual sums) share one mask, and a mask also scales the batch norm behind its filter
  (`filter_removal.masking`): a batch norm would scale the filter back.
- Batch norms use the batch's statistics while masks are learned. Frozen ones would not fit the lowered singular values.
- The sigmoid hardens every epoch, or every step (`harden`): the thesis' "every iteration" is over after 12 steps.
- Adam learns both at one rate, gamma in units of its layer's largest singular value.
- Of several limits the one furthest from being met is punished. lambda is 10, not 1: at 1 an excess of 5 % costs
  0.0025 nats, which the authors' repeated runs make up for. Here rounding meets the budget (`budget_filling`), the
  penalty need only come near it.
- The thesis rounds masks and ranks up, and is then above its budget ("up" cannot be meant for masks: every sigmoid
  rounds up to 1). Here the soft numbers of filters and the soft ranks are multiplied by one factor that meets the
  budget (`Thinning.choose`); within a group the filters with the highest m stay.
"""

from __future__ import annotations

import copy
import time
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from search_spaces.costs import COST_NAMES
from search_spaces.errors import ConfigError
from search_spaces.schemes.contract import Factors
from workers.batch import Inputs
from workers.factoriser import Factorising, factorise
from workers.training.contract import Compressed, Metrics, Setup, State, check_setup
from workers.training.filter_removal import masking, run_with
from workers.training.masks import ScheduledSigmoid
from workers.training.selection import SelectThenFineTune, report
from workers.training.selection_settings import SelectionSettings
from workers.training.sgd import SGDTraining
from workers.training.singular_value_threshold import singular_value_threshold, soft_rank
from workers.training.thinning import Learned, Thinning

__all__ = ["Less", "LessSettings", "ThresholdedNetwork", "start_less"]


class LessSettings(SelectionSettings):
    """How masks and thresholds are learned; the rest is fine-tuning's.

    Attributes:
        selection_epochs: on all training samples.
        selection_learning_rate: Adam's, of masks and of thresholds.
        learn: filters alone and ranks alone are the thesis' ablations.
        penalty: lambda, the weight of the missed budget.
        steepness, steepness_growth, steepness_limit: of the scheduled sigmoid. The thesis grows it by 4, on ImageNet by
            8; left out, it reaches its limit in the last epoch: a soft mask is not what it rounds to.
        harden: whether it grows every epoch or every step (by 4 where the growth is left out).
        rank_sharpness: of the soft rank, tau = rank_sharpness / s_1.
    """

    learn: Literal["both", "filters", "ranks"] = "both"
    penalty: Annotated[float, Field(gt=0)] = 10.0
    steepness: Annotated[float, Field(gt=0)] = 5.0
    steepness_growth: Annotated[float, Field(ge=0)] | None = None
    steepness_limit: Annotated[float, Field(gt=0)] = 50.0
    harden: Literal["epoch", "step"] = "epoch"
    rank_sharpness: Annotated[float, Field(gt=0)] = 2.0


class ThresholdedNetwork(nn.Module):
    """A frozen network seen through masks and thresholds.

    Attributes:
        logits: per group of filters, `(size,)`; 1 at the start.
        thresholds: `(layers,)`, as shares of each layer's largest singular value; 0 at the start.
        index: how often the sigmoid has hardened.
        sizes, ranks: soft filters per group and soft ranks per layer, of the last forward pass.
    """

    def __init__(self, network: nn.Module, thinning: Thinning, setup: Setup, settings: LessSettings) -> None:
        super().__init__()
        self.model = copy.deepcopy(network).requires_grad_(False)
        self.logits = nn.ParameterList(nn.Parameter(torch.ones(group.size)) for group in thinning.groups)
        self.thresholds = nn.Parameter(torch.zeros(len(setup.layers)))
        self.index = 0
        self.sizes: list[torch.Tensor] = []
        self.ranks: list[torch.Tensor] = []
        self._layers, self._groups = setup.layers, thinning.groups
        self._factored = [one and settings.learn != "filters" for one in thinning.factorable]
        self._sharpness = settings.rank_sharpness
        epochs = settings.selection_epochs if settings.harden == "epoch" else None
        self._sigmoid = ScheduledSigmoid.over(
            epochs, settings.steepness, settings.steepness_growth, settings.steepness_limit
        )
        weights = [network.get_parameter(f"{layer.name}.weight").detach().flatten(1) for layer in self._layers]
        largest = torch.stack([torch.linalg.matrix_norm(weight.cpu().double(), 2).float() for weight in weights])
        self.register_buffer("largest", largest)
        self.largest: torch.Tensor

    def forward(self, inputs: Inputs) -> object:
        """The outputs of the masked and thresholded network."""
        return run_with(self.model, self._tensors(), inputs)

    def learned(self) -> tuple[list[Learned], list[Learned]]:
        """Filters per group by m, and singular values per layer by size, with their soft numbers."""
        with torch.no_grad():
            self._tensors()
        filters = [
            Learned(logits.detach().argsort(descending=True, stable=True).cpu(), float(size))
            for logits, size in zip(self.logits, self.sizes, strict=True)
        ]
        full = (
            min(layer.dense.out_channels, layer.dense.parameters // layer.dense.out_channels) for layer in self._layers
        )
        components = [Learned(torch.arange(most), float(rank)) for most, rank in zip(full, self.ranks, strict=True)]
        return filters, components

    def _tensors(self) -> dict[str, torch.Tensor]:
        if self.training:
            with torch.no_grad():
                self.thresholds.clamp_(min=0)
        masks = [self._sigmoid(logits, self.index) for logits in self.logits]
        self.sizes = [mask.sum() for mask in masks]
        tensors = masking(self.model, self._groups, masks)
        self.ranks = []
        thresholds = self.thresholds * self.largest
        for layer, factored, threshold in zip(self._layers, self._factored, thresholds, strict=True):
            name = f"{layer.name}.weight"
            weight = tensors.get(name, self.model.get_parameter(name))
            if not factored:
                self.ranks.append(weight.new_tensor(float(min(weight.flatten(1).shape))))
                continue
            lowered, values = singular_value_threshold(weight.flatten(1), threshold)
            tensors[name] = lowered.view_as(weight)
            self.ranks.append(soft_rank(values, threshold, self._sharpness))
        return tensors


class Less:
    """The selection: masks and thresholds, then the smaller network."""

    def __init__(self, setup: Setup, settings: LessSettings) -> None:
        self._setup, self._settings = setup, settings
        timed = [cost for cost, _ in setup.budget.targets if cost not in COST_NAMES]
        if timed and settings.learn == "filters":
            raise ConfigError(
                "sweep.learn", f"filters alone cannot meet {timed[0]}: devices were timed at ranks only; learn ranks"
            )
        self.thinning = Thinning(setup, "less", filters=settings.learn != "ranks")
        self.network = ThresholdedNetwork(setup.network, self.thinning, setup, settings)
        self._training = SGDTraining(
            self.network,
            setup.train,
            settings.selecting(),
            seed=setup.seed,
            device=setup.device,
            method="less",
            after_backward=self._harden if settings.harden == "step" else None,
            objective=self._objective,
            optimizer=lambda: torch.optim.Adam([*self.network.logits, self.network.thresholds]),
        )

    @property
    def epochs(self) -> int:
        """In which masks and thresholds are learned."""
        return self._settings.selection_epochs

    def step(self) -> Metrics:
        """One epoch over all training samples; the accuracy is the soft network's.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
        """
        started = time.perf_counter()
        result = self._training.epoch()
        with torch.no_grad():
            soft = self.thinning.soft_compression(self.network.sizes, self.network.ranks)
        epoch = self._training.epochs
        metrics = report(self.network, result, self._setup, epoch=epoch, phase="less", started=started, **soft)
        if self._settings.harden == "epoch":
            self.network.index += 1
        return metrics

    def state(self) -> State:
        """A copy of the training's state, and how hard the sigmoid is."""
        return {"training": self._training.state(), "index": self.network.index}

    def restore(self, state: State) -> None:
        """Goes on where `state()` was taken."""
        self._training.restore(state["training"])
        self.network.index = state["index"]

    def compress(self) -> Compressed:
        """Rounded to the budget: filters removed, then the pruned weights truncated."""
        thinned = self.thinning.choose(*self.network.learned())
        network, layers = self.thinning.without(_plain(self._setup.network), thinned.kept)
        factors: dict[str, Factors] = {}
        for layer, rank in zip(layers, thinned.ranks, strict=True):
            if rank is not None:
                weight = network.get_parameter(f"{layer.name}.weight")
                factors[layer.name] = factorise(layer, "channel_svd", weight, (rank,), Factorising(), None)
        return self.thinning.build(network, layers, factors, thinned)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """The pruned network with cascades in the layers' places."""
        return self.thinning.architecture(compressed)

    def _objective(self, loss: torch.Tensor) -> torch.Tensor:
        return loss + self._settings.penalty * self.thinning.miss(self.network.sizes, self.network.ranks)

    def _harden(self, _steps: int) -> None:
        self.network.index += 1


def start_less(settings: LessSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Raises:
        ConfigError: another scheme than `channel_svd`, samples that do not fit the network, or a latency limit where
            filters alone are learned.
        InfeasibleBudgetError: the budget cannot be met.
    """
    check_setup(setup, "less")
    return SelectThenFineTune("less", Less(setup, settings), settings, setup)


def _plain(network: nn.Module) -> nn.Module:
    """A copy on the CPU."""
    return copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format).eval()
