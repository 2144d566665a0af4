"""Model files: tensors in safetensors, how to make the model again as JSON in its header; no code, no pickle."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from statespan.errors import StatespanError
from statespan.part import PARTS, Part, part_name
from statespan.version import __version__

FORMAT = 1
TORCH: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "torch.LSTMCell": (nn.LSTMCell, ("input_size", "hidden_size", "bias")),
    "torch.GRUCell": (nn.GRUCell, ("input_size", "hidden_size", "bias")),
    "torch.RNNCell": (nn.RNNCell, ("input_size", "hidden_size", "bias", "nonlinearity")),
}
"""Torch's own modules that may be parts of a model, and the arguments that make them again."""


def describe(model: nn.Module) -> dict[str, Any]:
    """How to make `model` again: class names and arguments, a part that is shared named where it first stands."""
    seen: dict[int, str] = {}

    def value(x: Any, path: str) -> Any:
        if isinstance(x, nn.Module):
            return module(x, path)
        if isinstance(x, (tuple, list)):
            return [value(item, f"{path}.{i}") for i, item in enumerate(x)]
        if isinstance(x, (torch.Tensor, np.ndarray)):
            return x.tolist()
        if x is None or isinstance(x, (bool, int, float, str)):
            return x
        raise StatespanError(
            f"cannot save {path}: made from a {type(x).__name__}; a recipe holds numbers, strings and parts"
        )

    def module(x: nn.Module, path: str) -> dict[str, Any]:
        if id(x) in seen:
            return {"same": seen[id(x)]}
        seen[id(x)] = path
        for name, (cls, fields) in TORCH.items():
            if type(x) is cls:
                return {"part": name, "path": path, "options": {field: getattr(x, field) for field in fields}}
        if not isinstance(x, Part):
            raise StatespanError(f"cannot save {path}: {type(x).__name__} is no statespan Part; derive it from ss.Part")
        arguments, options = x.recipe()
        return {
            "part": part_name(type(x)),
            "path": path,
            "arguments": [value(a, f"{path}.{i}") for i, a in enumerate(arguments)],
            "options": {k: value(v, f"{path}.{k}") for k, v in options.items()},
        }

    return module(model, "model")


def make(description: dict[str, Any]) -> nn.Module:
    """The model of a description, with parameters at their random start."""
    made: dict[str, nn.Module] = {}

    def value(x: Any) -> Any:
        if isinstance(x, dict):
            return module(x)
        return [value(item) for item in x] if isinstance(x, list) else x

    def module(x: dict[str, Any]) -> nn.Module:
        if "same" in x:
            return made[x["same"]]
        cls = TORCH[x["part"]][0] if x["part"] in TORCH else PARTS.get(x["part"])
        if cls is None:
            raise StatespanError(f"the file needs the part {x['part']}; import the module that defines it, then load")
        arguments = [value(a) for a in x.get("arguments", [])]
        options = {k: value(v) for k, v in x.get("options", {}).items()}
        try:
            part = cls(*arguments, **options)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise StatespanError(f"cannot make {x['part']} again ({reason}); is this version older?") from error
        made[x["path"]] = part
        return part

    return module(description)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file at once or not at all: to a temporary name beside it, then renamed.

    Raises:
        StatespanError: the folder is missing, the disk is full, or writing is not allowed.
    """
    target = Path(path)
    handle, temporary = -1, ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except (OSError, ValueError) as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StatespanError(
            f"cannot write {target}: {getattr(error, 'strerror', None) or error}; free some space or choose --out"
        ) from error


def save(model: nn.Module, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
    """Write a model.

    Args:
        model: a state space.
        path: the file.
        extra: JSON values kept beside it (a vocabulary, say).

    Raises:
        StatespanError: the model holds something that cannot be written, or the file cannot be.
    """
    tensors, ties, first = {}, {}, {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().contiguous().cpu()
    header = {
        "format": FORMAT,
        "version": __version__,
        "model": describe(model),
        "ties": ties,
        "extra": extra or {},
    }
    # One key: safetensors writes several in no fixed order, and the same model shall be the same bytes.
    write_bytes(path, to_bytes(tensors, {"statespan": json.dumps(header)}))


def save_tree(tree: Any, path: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
    """Write a tree of tensors, such as a belief: tensors, and as JSON how they hang together.

    Args:
        tree: named tuples of the library, tuples, tensors and None.
        path: the file.
        extra: JSON values kept beside it.
    """
    tensors: dict[str, torch.Tensor] = {}

    def value(x: Any) -> Any:
        if x is None:
            return None
        if isinstance(x, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = x.detach().contiguous().cpu().clone()
            return name
        kind = type(x)
        name = "" if kind is tuple else f"{kind.__module__}:{kind.__qualname__}"
        return {"tuple": name, "items": [value(item) for item in x]}

    header = {"format": FORMAT, "version": __version__, "tree": value(tree), "extra": extra or {}}
    write_bytes(path, to_bytes(tensors, {"statespan": json.dumps(header)}))


def load_tree(path: str | os.PathLike[str], device: torch.device | str | None = None) -> tuple[Any, dict[str, Any]]:
    """Read what `save_tree` wrote, and the JSON values beside it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["statespan"])
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118

        def value(x: Any) -> Any:
            if x is None or isinstance(x, str):
                return x if x is None else tensors[x]
            items = [value(item) for item in x["items"]]
            return _named_tuple(x["tuple"])(*items) if x["tuple"] else tuple(items)

        return value(header["tree"]), header["extra"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise StatespanError(f"{path}: not a whole statespan file of a belief ({error}); save it again") from error


def _named_tuple(name: str) -> type:
    """A named tuple of this library, or of the package of a part that is imported; nothing else is made."""
    module, _, path = name.partition(":")
    packages = {part.partition(".")[0] for part in PARTS}
    found: Any = sys.modules.get(module) if module.partition(".")[0] in packages else None
    for piece in path.split("."):
        found = getattr(found, piece, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise ValueError(f"it needs {name}; import the module that defines it")
    return found


def load(path: str | os.PathLike[str], device: torch.device | str | None = None) -> Any:
    """Read a model that `save` wrote.

    Args:
        path: the file.
        device: where the parameters shall lie.

    Returns:
        The model, with the same bits in every tensor.

    Raises:
        StatespanError: no file, not such a file, cut short, or made with a part that is not imported.

    Example:
        >>> import statespan as ss, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "m.safetensors")
        >>> ss.hmm(states=2, emission=ss.Categorical(3)).save(path)
        >>> ss.load(path).log_prob([0, 1]).shape
        torch.Size([])
    """
    return load_with_extra(path, device)[0]


def load_with_extra(
    path: str | os.PathLike[str], device: torch.device | str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Read a model and the JSON values kept beside it."""
    if not Path(path).is_file():
        raise StatespanError(f"{path}: no such file; give the path of a model that save wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["statespan"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        newer, version = header["format"] > FORMAT, header["version"]
        description, ties, extra = header["model"], header["ties"], header["extra"]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise StatespanError(f"{path}: not a whole statespan model file ({error}); save it again") from error
    if newer:
        raise StatespanError(f"{path}: written by statespan {version}, newer than this; upgrade statespan")
    try:
        model = make(description)
        _fill(model, tensors, ties)
    except StatespanError as error:
        raise StatespanError(f"{path}: {error}") from error
    return model.to(device) if device is not None else model, extra


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], ties: dict[str, str]) -> None:
    """Put saved values, and ties that the recipe does not make by itself, into a model that was made again."""
    current = model.state_dict(keep_vars=True)
    saved = tensors.keys() | ties.keys()
    if current.keys() != saved:
        lacks, more = sorted(current.keys() - saved), sorted(saved - current.keys())
        raise StatespanError(
            f"the file {'lacks' if lacks else 'has'} {', '.join(lacks or more)}, which the model "
            f"{'has' if lacks else 'lacks'}; is this version older?"
        )
    for name, tensor in tensors.items():
        if current[name].shape != tensor.shape:
            raise StatespanError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(current[name].shape)}")
        current[name].data = tensor
    for name, first in ties.items():
        if current[name] is not current[first]:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, current[first])
