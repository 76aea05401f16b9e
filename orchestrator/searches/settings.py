"""The `search` block of the config: the keys every method has. A method adds its own in a subclass."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from orchestrator.searches.limits import Bound, limit_of, normalised
from orchestrator.searches.objective import OBJECTIVES
from search_spaces.budgets import Limit
from search_spaces.candidates import Precision
from search_spaces.error_curves import MEASURES
from search_spaces.registry import nearest

__all__ = ["SearchSettings", "Strict"]


class Strict(BaseModel):
    """A config block: an unknown key is an error, and so is a number that is infinite or none.

    Numbers may come as text: YAML reads `1e-3` as text, and so does everything that an environment variable gives.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SearchSettings(Strict):
    """What every search has.

    Attributes:
        method: name in the registry of searches.
        scheme: how layers are factorised.
        norm: what a truncation minimises: `weight` the Frobenius norm of the weight's change, `activation` that of
            the output's over the calibration batch.
        last_stage: of a factorised layer: `truncated`, or `fitted` by least squares to the dense layer's outputs over
            the calibration batch, given the stages before it.
        bias: of a factorised layer: `kept` as it is, or `corrected` so that the layer's mean output over the
            calibration batch is kept; a layer without a bias gets one. Fitted last stages are fitted together with it.
        batch_norm: `stored` statistics, or `reestimated` on the calibration batch in the network that is found;
            candidates are then scored with the statistics of the validation batch itself.
        measure: of a layer's error (see `search_spaces/error_curves.py`): what makes the ladder of a sliced layer, and
            what allocations go by.
        budget: limits by cost: a compression C(r) in (0, 1), or the most the whole network may cost; by device for
            `latency` and `throughput`. See `limits.py` for all the forms, and the flat one that is kept.
        objective: what candidates are ranked by.
        early_stop: stop scoring a candidate once it is certain that it cannot be among the best any more; the answer is
            the same.
        seed: of the search and of the validation split.
        include, exclude: shell patterns over layer names.
    """

    method: str
    scheme: str = "channel_svd"
    norm: Literal["weight", "activation"] = "weight"
    last_stage: Literal["truncated", "fitted"] = "truncated"
    bias: Literal["kept", "corrected"] = "kept"
    batch_norm: Literal["stored", "reestimated"] = "stored"
    measure: str = "max_slice"
    budget: dict[str, Bound]
    objective: str = "accuracy"
    early_stop: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    @property
    def stops_early(self) -> bool:
        """Whether some candidates need not be scored to the end."""
        return self.early_stop

    @property
    def screens_in(self) -> Precision:
        """In which precision most candidates are scored; the answer's scores are always in float32."""
        return "float32"

    @property
    def needs_moments(self) -> bool:
        """Whether factors depend on what the layers see."""
        return self.norm == "activation" or self.last_stage == "fitted" or self.bias == "corrected"

    @property
    def needs_calibration(self) -> bool:
        """Whether unlabelled data are looked at."""
        return self.needs_moments or self.batch_norm == "reestimated"

    def limits(self, batch_size: int) -> tuple[Limit, ...]:
        """The budget as limits.

        Args:
            batch_size: samples that a device is timed with: what throughputs are counted by.
        """
        return tuple(limit_of(name, bound, batch_size) for name, bound in self.budget.items())

    @field_validator("budget", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """A list of limits means the same as one mapping."""
        if isinstance(value, list) and all(isinstance(limit, dict) for limit in value):
            names = [name for limit in value for name in limit]
            if len(set(names)) < len(names):
                raise ValueError("a cost is limited twice")
            value = {name: bound for limit in value for name, bound in limit.items()}
        return normalised(value) if isinstance(value, dict) else value

    @field_validator("measure")
    @classmethod
    def _known_measure(cls, measure: str) -> str:
        if measure not in MEASURES:
            raise ValueError(f"unknown measure {measure!r}{nearest(measure, list(MEASURES))}")
        return measure

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, objective: str) -> str:
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}{nearest(objective, list(OBJECTIVES))}")
        return objective
