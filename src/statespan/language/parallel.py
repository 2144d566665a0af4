"""Several processes that train one model together, as `torchrun` starts them: each has a share of the work.

One process alone is the case of one share: every function here then gives back what it got.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as group

from statespan.tree import Tree, leaves, replace_leaves


def processes() -> int:
    """How many processes share the work."""
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def place() -> int:
    """Which of them this is, from 0."""
    return group.get_rank() if processes() > 1 else 0


def started() -> bool:
    """Whether `torchrun` started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that `torchrun` started, for as long as the context lasts; alone, nothing is done.

    Examples:
        >>> with together():
        ...     processes()
        1
    """
    if not started():
        yield
        return
    group.init_process_group("gloo")
    try:
        yield
    finally:
        group.destroy_process_group()


def device(name: str) -> str:
    """The device of this process: `cuda` is the GPU of its own number among those that `torchrun` started.

    Examples:
        >>> device("cpu"), device("cuda:1")
        ('cpu', 'cuda:1')
    """
    return f"{name}:{os.environ['LOCAL_RANK']}" if name == "cuda" and started() else name


def own(path: Path) -> Path:
    """A file of this process alone, beside those of the others: the path itself for the first of them.

    Examples:
        >>> own(Path("checkpoint.safetensors")).name
        'checkpoint.safetensors'
    """
    return path.with_suffix(f".{place()}{path.suffix}") if place() else path


def agreed(fact: Any) -> Any:
    """What the first process says, in all of them.

    Args:
        fact: anything that can be pickled.

    Examples:
        >>> agreed(["elman"])
        ['elman']
    """
    if processes() == 1:
        return fact
    said = [fact]
    group.broadcast_object_list(said)
    return said[0]


def columns(words: Tensor) -> Tensor:
    """This process's columns of a stream (T, B), next to each other.

    Examples:
        >>> columns(torch.ones(3, 4)).shape
        torch.Size([3, 4])
    """
    return words.tensor_split(processes(), 1)[place()] if processes() > 1 else words


def summed(values: Tree) -> Tree:
    """Each tensor summed over the processes: the same bits in all of them.

    Args:
        values: A tree of tensors.

    Examples:
        >>> summed((torch.ones(2), None))
        (tensor([1., 1.]), None)
    """
    if processes() == 1:
        return values
    return replace_leaves(values, [_sum(x) for x in leaves(values)])


def _sum(x: Tensor) -> Tensor:
    total = x.detach().contiguous().clone()
    group.all_reduce(total)
    return total


def total(number: float) -> float:
    """A number summed over the processes.

    Examples:
        >>> total(2.5)
        2.5
    """
    return number if processes() == 1 else float(summed(torch.tensor(number, dtype=torch.float64)))


def sum_gradients(parameters: list[Any]) -> None:
    """Sum the gradients over the processes; one that a process lacks counts as zero.

    Args:
        parameters: The same ones in every process.
    """
    if processes() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        group.all_reduce(parameter.grad)


def anywhere(*facts: bool) -> tuple[bool, ...]:
    """Whether each is so in some process; all come to know it.

    Examples:
        >>> anywhere(True, False)
        (True, False)
    """
    if processes() == 1:
        return facts
    found: Tensor = summed(torch.tensor([float(fact) for fact in facts]))
    return tuple(bool(x) for x in found > 0)
