"""Watches one forward pass for what decides how it may be scored: whether it reads values, and how large it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Seen", "watch"]


@dataclass
class Seen:
    """What was seen.

    Attributes:
        reads_values: it looked at what is in a tensor, as `if x.sum() > 0` and `x[x > 0]` do: its control flow may
            depend on all samples of a batch at once.
        reaches_memory: it took `.data` or an array of a tensor: what it writes there, torch does not count.
        largest_bytes: of the largest tensor that an operator made.
    """

    reads_values: bool = False
    reaches_memory: bool = False
    largest_bytes: int = 1


def watch(run: Callable[[], object]) -> Seen:
    """Runs something and tells what it did."""
    seen = Seen()
    with _Methods(seen), _Operators(seen):
        run()
    return seen


class _Operators(TorchDispatchMode):
    """Sees operators: those whose result is no tensor, or one whose shape depends on values, read values."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _depends_on_values(func, args) or isinstance(result, bool | int | float | complex):
            self.seen.reads_values = True
        if isinstance(result, torch.Tensor) and func._schema.returns[0].alias_info is None:
            self.seen.largest_bytes = max(self.seen.largest_bytes, result.numel() * result.element_size())
        return result


def _depends_on_values(func: Any, args: Any) -> bool:
    if func is torch.ops.aten.index.Tensor:  # by numbers, its shape is theirs; by a mask, it is not
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


_GIVES_VALUES = {"item", "tolist", "numpy", "__array__"}
_GIVES_MEMORY = {"numpy", "__array__", "data_ptr", "untyped_storage", "storage"}


class _Methods(TorchFunctionMode):
    """Sees methods that hand values or memory to Python without an operator."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_data = name == "__get__" and getattr(getattr(func, "__self__", None), "__name__", "") == "data"
        self.seen.reads_values = self.seen.reads_values or name in _GIVES_VALUES
        self.seen.reaches_memory = self.seen.reaches_memory or is_data or name in _GIVES_MEMORY
        return func(*args, **(kwargs or {}))
