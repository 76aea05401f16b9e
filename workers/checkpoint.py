"""Checkpoints: a user's weights, read without running anything that the file holds, and put into their model."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from search_spaces.errors import ConfigError
from workers.causes import cause
from workers.digests import digest

__all__ = ["fingerprint", "load_checkpoint"]

StateDict = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts put the state dict beside an epoch and an optimizer."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""
COUNTER = "num_batches_tracked"
"""Batch norm's counter of training steps: no weight, and older checkpoints lack it."""
SHOWN = 3
"""Names listed in a message before it only counts."""


def load_checkpoint(model: nn.Module, path: str | Path, key: str = "model.checkpoint") -> None:
    """Puts a checkpoint's weights into a model, in place; on an error the model is as it was.

    Reads .safetensors and what `torch.save` writes, with `weights_only=True`: code in a file is refused, not run.
    Every name and shape must match, apart from batch norm's counters. Values are cast to the model's dtypes.

    Args:
        model: of the architecture that the checkpoint was saved from.
        path: a state dict, or a dict with one under "state_dict" or "model"; names may carry the prefix of
            DataParallel or torch.compile.
        key: config key the path stands under, for messages.

    Raises:
        ConfigError: no such file; one that is empty, damaged or holds more than tensors; another architecture;
            NaN or infinite weights.
    """
    path = Path(path)
    own = model.state_dict()
    given = _without_prefix(_state_dict(_read(path, key), path, key), own)
    given = _with_tied_names(given, own)
    _check_architecture(given, own, path, key)
    # A counter that the checkpoint lacks keeps its value.
    complete = {name: given.get(name, own[name]).to(own[name].dtype) for name in own}
    _check_finite(complete, own, {name for name, _ in model.named_parameters(remove_duplicate=False)}, path, key)
    model.load_state_dict(complete, strict=True)


def fingerprint(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, over the names, dtypes, shapes and bytes of a model's state dict."""
    return digest(model.state_dict().items())


def _read(path: Path, key: str) -> object:
    """The file's content, still of any type."""
    if path.is_dir():
        raise ConfigError(key, f"{path} is a directory; name the weights file in it")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConfigError(key, f"{path} cannot be opened: {error.strerror}") from error
    if not head:
        raise ConfigError(key, f"{path} is empty (0 bytes); save the weights again")
    # A safetensors file is 8 bytes of length, then a JSON object; some go by the name of .bin or .pt.
    is_safetensors = path.suffix == ".safetensors" or head[8:] == b"{"
    return _read_safetensors(path, key) if is_safetensors else _read_torch(path, head, key)


def _read_safetensors(path: Path, key: str) -> StateDict:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(key, f"{path} is no safetensors file, or it is truncated ({cause(error)})") from error


def _read_torch(path: Path, head: bytes, key: str) -> object:
    try:
        with warnings.catch_warnings():  # of formats that are then refused, in a line of our own
            warnings.simplefilter("ignore")
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead it to (KeyError, EOFError, ...)
        found = _content_refused(error, head)
        if found is not None:
            raise ConfigError(
                key,
                f"{path} holds {found}, which could run code, so it was not loaded; "
                "save the state dict alone (torch.save(model.state_dict(), ...)) or use safetensors",
            ) from None
        raise ConfigError(key, f"{path} is no checkpoint, or it is damaged ({cause(error)})") from error
    _check_archive(path, key)
    return content


def _content_refused(error: Exception, head: bytes) -> str | None:
    """What torch's restricted unpickler would not load; None if the file was simply unreadable."""
    text = str(error)
    if "TorchScript" in text:
        return "a TorchScript program"
    if not isinstance(error, UnpicklingError):
        return None
    name = re.search(r"GLOBAL (\S+)", text)
    if name is not None:
        return f"the Python object {name.group(1)}"
    is_pickle = head.startswith((b"PK", b"\x80"))
    return "Python objects" if is_pickle else None


def _check_archive(path: Path, key: str) -> None:
    """`torch.load` does not compare the checksums in the archive that `torch.save` writes, so a flipped bit passes."""
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6 has no checksums
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(key, f"{path} is damaged ({cause(error)}); copy or save it again") from error
    if damaged is not None:
        raise ConfigError(key, f"{path} is damaged: the checksum of {damaged} is wrong; copy or save it again")


def _state_dict(content: object, path: Path, key: str) -> StateDict:
    """Finds the state dict in what a training script saved."""
    while isinstance(content, Mapping):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    wanted = f"expected a state dict, or one under {' or '.join(repr(name) for name in WRAPPERS)}"
    if not isinstance(content, Mapping):
        raise ConfigError(key, f"{path} holds an object of type {type(content).__name__}; {wanted}")
    if not content:
        raise ConfigError(key, f"{path} holds no weights at all; {wanted}")
    other = {str(name): value for name, value in content.items() if not isinstance(value, torch.Tensor)}
    if other:
        kinds = [f"{name} ({type(value).__name__})" for name, value in other.items()]
        raise ConfigError(key, f"{path} holds other things than tensors: {_first(kinds)}; {wanted}")
    return {str(name): value for name, value in content.items()}


def _without_prefix(given: StateDict, own: Mapping[str, torch.Tensor]) -> StateDict:
    """Drops what every given name starts with (one prefix or several), unless the model's own names start so too."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in given) and not all(name.startswith(prefix) for name in own):
            return _without_prefix({name.removeprefix(prefix): value for name, value in given.items()}, own)
    return given


def _with_tied_names(given: StateDict, own: Mapping[str, torch.Tensor]) -> StateDict:
    """Adds the other names of tied tensors: safetensors stores such a tensor once, under any one of its names."""
    names_by_memory: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
            names_by_memory.setdefault(memory, []).append(name)
    added = {}
    for names in names_by_memory.values():
        stored = next((name for name in names if name in given), None)
        if stored is not None:
            added.update({name: given[stored] for name in names})
    return {**added, **given}


def _check_architecture(given: StateDict, own: Mapping[str, torch.Tensor], path: Path, key: str) -> None:
    """Names what is missing, what the model does not have, and what has another shape or kind of number."""
    missing = [name for name in own if name not in given and not name.endswith(COUNTER)]
    unexpected = [name for name in given if name not in own and not name.endswith(COUNTER)]
    shared = [name for name in own if name in given]
    shapes = [
        f"{name} ({_size(given[name])}, the model has {_size(own[name])})"
        for name in shared
        if given[name].shape != own[name].shape
    ]
    # A quantised int8 weight would be cast to float without its scale.
    kinds = [
        f"{name} ({given[name].dtype}, the model has {own[name].dtype})"
        for name in shared
        if given[name].is_floating_point() != own[name].is_floating_point()
    ]
    sorts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes, "of another dtype": kinds}
    faults = [f"{len(names)} {sort}: {_first(names)}" for sort, names in sorts.items() if names]
    if faults:
        raise ConfigError(
            key, f"{path} is of another architecture than the model; {'; '.join(faults)}; check model.build"
        )


def _check_finite(
    new: StateDict, own: Mapping[str, torch.Tensor], parameters: Collection[str], path: Path, key: str
) -> None:
    """Refuses NaN and infinities; only a buffer may keep infinities that the model itself starts with (masks)."""
    faulty = []
    for name, tensor in new.items():
        wrong = ~torch.isfinite(tensor)
        if name not in parameters:
            wrong &= ~(torch.isinf(tensor) & torch.isinf(own[name].to(tensor.device)))
        if wrong.any():
            faulty.append(f"{name} ({int(wrong.sum())} of {wrong.numel()})")
    if faulty:
        raise ConfigError(
            key, f"{path} has NaN or infinite weights: {_first(faulty)}; take a checkpoint from before it diverged"
        )


def _first(names: list[str]) -> str:
    """The first few names, and how many there are beyond them."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _size(tensor: torch.Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape) or "a single number"
