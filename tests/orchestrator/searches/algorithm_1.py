"""Algorithm 1 of BSR (Eo, thesis 2023, section 3), as plainly as it can be said: the reference that mBS is held to.

Whole rank vectors, one after the other, everything computed afresh from the matrices' shapes; no code of the project.
What the printed algorithm leaves open, or gets wrong, is settled as `orchestrator.searches.beam_search` documents it:

- a layer's number counts down from its full rank min(m, n) (`start="full"`), or from one above the largest rank that
  shrinks it (`"break_even"`); above that rank it stands for the dense layer, which is what is scored;
- eq. 3.1: C(r) = 1 - sum min(m n, r (m + n)) / sum m n;
- a step that would lead below rank 1 leads to rank 1; children beyond C_d are dropped;
- candidates that could not be scored are dropped; ties are decided by `tie_break`, then by a hash of seed and ranks;
- the search ends when the best of the beam lies in [C_d - tau, C_d]. If no child survives, s <- round(gamma s), and
  always less than before. Below s = 1 there is nothing left to try: the best ever seen in the window is the answer, or
  else what came closest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

__all__ = ["algorithm_1", "compression"]

Dims = Sequence[tuple[int, int]]
Ranks = tuple[int | None, ...]
Values = Mapping[str, float]

ROUNDING = 1e-12


def compression(dims: Dims, ranks: Ranks) -> Fraction:
    """Eq. 3.1, exactly; `None` is a dense layer."""
    costs = [m * n if rank is None else min(m * n, rank * (m + n)) for (m, n), rank in zip(dims, ranks, strict=True)]
    return 1 - Fraction(sum(costs), sum(m * n for m, n in dims))


def algorithm_1(
    dims: Dims,
    score: Callable[[Ranks], Values | None],
    *,
    c_d: float,
    tau: float,
    step: int,
    beam_size: int,
    gamma: float = 0.5,
    start: str = "break_even",
    tie_break: str = "rank",
    objective: str = "accuracy",
    seed: int = 0,
) -> Ranks | None:
    """The rank vector that algorithm 1 ends with.

    Args:
        dims: (m, n) of every layer's matrix.
        score: `accuracy`, `loss` and `kl` of a rank vector; None if it cannot be scored. Called once for each.
        objective: `accuracy`, `cross_entropy` (the loss) or `kl`.

    Returns:
        One rank a layer, `None` for dense; None if not even the start could be scored.
    """
    useful = [max((r for r in range(1, min(m, n) + 1) if r * (m + n) < m * n), default=0) for m, n in dims]
    known: dict[Ranks, Values | None] = {}

    def ranks_of(numbers: tuple[int, ...]) -> Ranks:
        return tuple(r if r <= most else None for r, most in zip(numbers, useful, strict=True))

    def values(numbers: tuple[int, ...]) -> Values | None:
        ranks = ranks_of(numbers)
        if ranks not in known:
            known[ranks] = score(ranks)
        return known[ranks]

    def goodness(numbers: tuple[int, ...]) -> float:
        found = values(numbers)
        if found is None:
            return -math.inf
        value = {"accuracy": found["accuracy"], "cross_entropy": -found["loss"], "kl": -found["kl"]}[objective]
        return -math.inf if math.isnan(value) else value

    def gap(numbers: tuple[int, ...]) -> float:
        return float(compression(dims, ranks_of(numbers)) - Fraction(c_d))

    def in_window(numbers: tuple[int, ...]) -> bool:
        return -tau - ROUNDING <= gap(numbers) <= ROUNDING

    def order(numbers: tuple[int, ...]) -> tuple[float, float, bytes]:
        tie = {"rank": sum(numbers), "loss": (values(numbers) or {}).get("loss", 0.0), "compression": -gap(numbers)}
        drawn = hashlib.blake2b(f"{seed}:{numbers}".encode(), digest_size=8).digest()
        return -goodness(numbers), tie[tie_break], drawn

    def children(beam: list[tuple[int, ...]], step: int) -> list[tuple[int, ...]]:
        found = []
        for numbers in beam:
            for layer in range(len(dims)):
                child = list(numbers)
                child[layer] = max(1, child[layer] - step)
                if tuple(child) != numbers and tuple(child) not in found and gap(tuple(child)) <= ROUNDING:
                    found.append(tuple(child))
        return found

    full = [min(m, n) for m, n in dims]
    first = full if start == "full" else [min(most, one + 1) for most, one in zip(full, useful, strict=True)]
    level: list[tuple[int, ...]] = [tuple(first)]
    beam: list[tuple[int, ...]] = []
    seen_inside: list[tuple[int, ...]] = []
    while True:
        scored = sorted((numbers for numbers in level if goodness(numbers) > -math.inf), key=order)
        if scored:
            beam = scored[:beam_size]
            seen_inside += [numbers for numbers in scored if in_window(numbers)]
            if in_window(beam[0]):
                return ranks_of(beam[0])
            level = children(beam, step)
        else:
            level = []  # nothing that could be scored survived
        while beam and not level and step > 1:
            step = max(1, min(round(gamma * step), step - 1))
            level = children(beam, step)
        if not level:
            break
    if not beam:
        return None
    return ranks_of(min(seen_inside, key=order) if seen_inside else max(beam, key=gap))
