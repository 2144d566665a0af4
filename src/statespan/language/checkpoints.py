"""Where a training run stands, on disk: tensors and JSON in one file that is there whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from statespan.errors import StatespanError
from statespan.files import write_bytes


def write(path: Path, stamp: str, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint, at once or not at all.

    Args:
        path: the file.
        stamp: what the run depends on; `read` wants the same.
        state: JSON values.
        tensors: tensors by name.

    Raises:
        StatespanError: the file cannot be written; the one that was there is untouched.
    """
    header = {"stamp": stamp, "state": json.dumps(state)}
    write_bytes(path, to_bytes({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, header))


def read(path: Path, stamp: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and the tensors of a checkpoint.

    Args:
        path: the file.
        stamp: what it was written with.

    Raises:
        StatespanError: the file is cut short or broken, or of other settings.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            # Clones: views into the file's buffer are not aligned, and products of such round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        state, written = json.loads(meta["state"]), meta["stamp"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StatespanError(f"{path}: the checkpoint is cut short or broken ({reason}); delete it") from error
    if written != stamp:
        raise StatespanError(
            f"{path}: the checkpoint is of other settings or another text; delete it, or give another --out"
        )
    return state, tensors
