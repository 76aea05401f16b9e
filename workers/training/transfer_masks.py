"""`transfer_masks`: a mask per singular value and per filter, learned while a network moves to a new data set.

LeSS' authors announce this (arXiv 2309.13077: which singular values matters more than how many, so that one threshold
per layer is too little) and leave out the chapter: no equation, setting or number of it is known. So this is a design:

- Every layer's weight is U diag(mask) V with the factors of its pretrained weight, balanced, and scaled per filter like
  LeSS' (`filter_removal.masking`). All masks are scheduled sigmoids that start at logits of 1.
- The weights move to the new data meanwhile: factors, batch norms, biases and the new last layer by AdamW, masks by the
  same at a rate of their own. A budget on a frozen network would choose by what the old data needed.
- The budget, soft costs and rounding are LeSS' (`thinning.py`), except that singular values stay by their masks, not by
  their size.

The last layer is replaced before the layers are surveyed: `new_classes.with_classes`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.layers import Layer
from search_spaces.schemes.contract import Factors
from search_spaces.schemes.decomposition import decompose
from workers.batch import Inputs
from workers.training.contract import Compressed, Metrics, Setup, State, check_setup
from workers.training.filter_removal import masking, run_with
from workers.training.masks import ScheduledSigmoid
from workers.training.selection import SelectThenFineTune, report
from workers.training.selection_settings import SelectionSettings
from workers.training.sgd import SGDTraining
from workers.training.thinning import Learned, Thinning

__all__ = ["MaskedNetwork", "TransferMasks", "TransferMasksSettings", "start_transfer_masks"]


class TransferMasksSettings(SelectionSettings):
    """How masks are learned while the network moves; the rest is fine-tuning's.

    Attributes:
        selection_epochs: in which masks and weights are learned together.
        selection_learning_rate: AdamW's, of the weights.
        mask_learning_rate: of the masks' logits.
        penalty: weight of the squared distance from the budget, in shares of the dense network's cost.
        steepness, steepness_growth, steepness_limit: of the scheduled sigmoid, which hardens every epoch; without a
            growth it is at its limit in the last one.
        remove_filters: whether filters have masks, too.
    """

    selection_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    mask_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    penalty: Annotated[float, Field(gt=0)] = 10.0
    steepness: Annotated[float, Field(gt=0)] = 5.0
    steepness_growth: Annotated[float, Field(ge=0)] | None = None
    steepness_limit: Annotated[float, Field(gt=0)] = 50.0
    remove_filters: bool = True


class MaskedNetwork(nn.Module):
    """A network whose layers are factored and masked; everything in it is trained.

    Attributes:
        encoders, decoders: per layer, `(q, n)` and `(q, m)`: the weight is decoder^T diag(mask) encoder.
        filter_logits, component_logits: per group `(size,)`, per layer `(q,)`; 1 at the start.
        index: how often the sigmoid has hardened.
        sizes, ranks: soft counts of the last forward pass.
    """

    def __init__(self, setup: Setup, thinning: Thinning, sigmoid: ScheduledSigmoid) -> None:
        super().__init__()
        self.model = copy.deepcopy(setup.network)
        self._layers, self._groups, self._factorable = setup.layers, thinning.groups, thinning.factorable
        self._sigmoid = sigmoid
        found = [decompose(self.model.get_parameter(f"{one.name}.weight").detach().flatten(1)) for one in setup.layers]
        self.encoders = nn.ParameterList(nn.Parameter(factors.encoder) for factors in found)
        self.decoders = nn.ParameterList(nn.Parameter(factors.decoder) for factors in found)
        self.component_logits = nn.ParameterList(nn.Parameter(torch.ones(len(one.encoder))) for one in found)
        self.filter_logits = nn.ParameterList(nn.Parameter(torch.ones(group.size)) for group in thinning.groups)
        self.index = 0
        self.sizes: list[torch.Tensor] = []
        self.ranks: list[torch.Tensor] = []

    def forward(self, inputs: Inputs) -> object:
        """The outputs of the masked network."""
        masks = [self._sigmoid(logits, self.index) for logits in self.filter_logits]
        components = [
            self._sigmoid(logits, self.index) if factorable else torch.ones_like(logits)
            for logits, factorable in zip(self.component_logits, self._factorable, strict=True)
        ]
        self.sizes = [mask.sum() for mask in masks]
        self.ranks = [mask.sum() for mask in components]
        return run_with(self.model, masking(self.model, self._groups, masks, self.weights(components)), inputs)

    def weights(self, masks: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The layers' weights multiplied out in full precision, by name, under masks of their singular values."""
        with torch.autocast(masks[0].device.type, enabled=False):
            return {
                f"{layer.name}.weight": ((decoder.T * mask) @ encoder).view(layer.dense.weight_shape)
                for layer, encoder, decoder, mask in zip(self._layers, self.encoders, self.decoders, masks, strict=True)
            }

    def learned(self) -> tuple[list[Learned], list[Learned]]:
        """Filters per group and singular values per layer, by their masks."""
        found = []
        for lists in (self.filter_logits, self.component_logits):
            masks = [self._sigmoid(logits.detach(), self.index) for logits in lists]
            orders = [logits.detach().argsort(descending=True, stable=True).cpu() for logits in lists]
            found.append([Learned(order, float(mask.sum())) for order, mask in zip(orders, masks, strict=True)])
        return found[0], found[1]


class TransferMasks:
    """The selection: masks and weights together, then the smaller network."""

    def __init__(self, setup: Setup, settings: TransferMasksSettings) -> None:
        self._setup, self._settings = setup, settings
        self.thinning = Thinning(setup, "transfer_masks", filters=settings.remove_filters)
        sigmoid = ScheduledSigmoid.over(
            settings.selection_epochs, settings.steepness, settings.steepness_growth, settings.steepness_limit
        )
        self.network = MaskedNetwork(setup, self.thinning, sigmoid)
        self._training = SGDTraining(
            self.network,
            setup.train,
            settings.selecting(),
            seed=setup.seed,
            device=setup.device,
            method="transfer_masks",
            objective=self._objective,
            optimizer=self._optimizer,
        )

    @property
    def epochs(self) -> int:
        """In which masks are learned."""
        return self._settings.selection_epochs

    def step(self) -> Metrics:
        """One epoch over all training samples; the accuracy is the masked network's.

        Raises:
            TrialDivergedError: the loss is NaN or infinite.
        """
        started = time.perf_counter()
        result = self._training.epoch()
        with torch.no_grad():
            soft = self.thinning.soft_compression(self.network.sizes, self.network.ranks)
        epoch, phase = self._training.epochs, "transfer_masks"
        metrics = report(self.network, result, self._setup, epoch=epoch, phase=phase, started=started, **soft)
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
        """Rounded to the budget: filters removed, the other singular values dropped."""
        thinned = self.thinning.choose(*self.network.learned())
        network = self.network.cpu()
        with torch.no_grad():
            for name, weight in network.weights([mask.float() for mask in thinned.components]).items():
                network.model.get_parameter(name).copy_(weight)
        thin, layers = self.thinning.without(network.model, thinned.kept)
        factors = {}
        for index, (layer, rank) in enumerate(zip(self._setup.layers, thinned.ranks, strict=True)):
            if rank is not None:
                components = thinned.components[index]
                encoder, decoder = (one[index].detach()[components] for one in (network.encoders, network.decoders))
                factors[layer.name] = self._without(layer, encoder, decoder, thinned.kept)
        return self.thinning.build(thin, layers, factors, thinned)

    def architecture(self, compressed: Compressed) -> nn.Module:
        """The pruned network with cascades in the layers' places."""
        return self.thinning.architecture(compressed)

    def _without(
        self, layer: Layer, encoder: torch.Tensor, decoder: torch.Tensor, kept: Sequence[torch.Tensor]
    ) -> Factors:
        """Factors of a layer that lost filters: rows of the decoder, channels of the encoder."""
        inputs, outputs = self.thinning.channels_left(layer, kept)
        encoder = encoder.view(len(encoder), layer.dense.in_channels, -1)[:, inputs].flatten(1)
        decoder = decoder[:, outputs]
        return Factors.of_matrix(encoder, decoder, encoder.norm(dim=1) * decoder.norm(dim=1))

    def _objective(self, loss: torch.Tensor) -> torch.Tensor:
        return loss + self._settings.penalty * self.thinning.miss(self.network.sizes, self.network.ranks)

    def _optimizer(self) -> torch.optim.Optimizer:
        network, settings = self.network, self._settings
        masks = [*network.component_logits, *network.filter_logits]
        replaced = {f"{layer.name}.weight" for layer in self._setup.layers}
        others = [one.requires_grad_(name not in replaced) for name, one in network.model.named_parameters()]
        weights = [*network.encoders, *network.decoders, *(one for one in others if one.requires_grad)]
        return torch.optim.AdamW(
            [
                {"params": [one for one in weights if one.dim() > 1], "weight_decay": settings.weight_decay},
                {"params": [one for one in weights if one.dim() <= 1], "weight_decay": 0.0},
                {
                    "params": masks,
                    "weight_decay": 0.0,
                    "scale": settings.mask_learning_rate / settings.selection_learning_rate,
                },
            ]
        )


def start_transfer_masks(settings: TransferMasksSettings, setup: Setup) -> SelectThenFineTune:
    """The trainable.

    Args:
        setup: its network is pretrained and ends in a layer for the new classes (`new_classes.with_classes`).

    Raises:
        ConfigError: another scheme than `channel_svd`, samples that do not fit the network, or distillation: the
            pretrained network cannot teach classes that it does not know.
        InfeasibleBudgetError: the budget cannot be met.
    """
    check_setup(setup, "transfer_masks")
    if settings.distillation:
        raise ConfigError("sweep.distillation", "the pretrained network does not know the new classes; leave it at 0")
    return SelectThenFineTune("transfer_masks", TransferMasks(setup, settings), settings, setup)
