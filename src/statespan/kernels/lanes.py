"""What the CPU kernels share: threads over groups of sequences, single-threaded GEMMs, the order of the lanes."""

import ctypes
import functools
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@functools.cache
def _executor(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="statespan")


os.register_at_fork(after_in_child=_executor.cache_clear)

_OURS = threading.local()


def available() -> int:
    """How many threads a kernel may use: torch's number, inside `kernels_alone` what that was outside."""
    return getattr(_OURS, "count", 0) or torch.get_num_threads()


def parallel(function: Callable[[int], None], count: int, threads: int | None = None) -> None:
    """Calls a function for 0 ... count - 1 on torch's number of threads, the caller's among them.

    Every thread takes the next number that is left, so unequal pieces, and cores that are busy with something else,
    even out. The function should spend its time without the GIL (Numba with `nogil`, or torch).

    Args:
        function: called once with every number.
        count: how many numbers.
        threads: at most so many threads; `available()` where not given.

    Raises:
        BaseException: the first that a call raised, once all threads have stopped.

    Example:
        >>> done = [False] * 5
        >>> parallel(lambda i: done.__setitem__(i, True), 5)
        >>> all(done)
        True
    """
    threads = min(count, available() if threads is None else threads)
    if threads <= 1:
        for i in range(count):
            function(i)
        return
    numbers = itertools.count()

    def work() -> None:
        while (i := next(numbers)) < count:
            function(i)

    pool = _executor(available() - 1 or 1)
    futures: list[Future[None]] = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        running = [future for future in futures if not future.cancel()]
        errors = [error for future in running if (error := future.exception())]
    if errors:
        raise errors[0]


@functools.cache
def _local_threads() -> Callable[[int], int] | None:
    """MKL's setting of the calling thread's number of threads, where torch was built with MKL."""
    for name in ("libtorch_cpu.so", "torch_cpu.dll", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                function = ctypes.CDLL(str(path)).MKL_Set_Num_Threads_Local
            except (OSError, AttributeError):
                return None
            function.argtypes = [ctypes.c_int]
            function.restype = ctypes.c_int
            return function
    return None


def can_split() -> bool:
    """Whether matrix products may be spread over threads of our own, each of them single-threaded.

    Example:
        >>> isinstance(can_split(), bool)
        True
    """
    return _local_threads() is not None


@functools.cache
def _openmp_threads() -> tuple[Callable[[int], None], Callable[[], int]] | None:
    """OpenMP's setting of the calling thread's number of threads, and what it is, where torch was built with OpenMP."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
                change, ask = library.omp_set_num_threads, library.omp_get_max_threads
            except (OSError, AttributeError):
                return None
            change.argtypes, change.restype, ask.restype = [ctypes.c_int], None, ctypes.c_int
            return change, ask
    return None


@contextmanager
def one_thread(alone: bool = True) -> Iterator[None]:
    """What the calling thread does in torch uses no other thread inside this block (where torch uses OpenMP and MKL).

    Args:
        alone: False leaves everything as it is.

    Example:
        >>> with one_thread():
        ...     float(torch.mm(torch.ones(1, 2), torch.ones(2, 1)))
        2.0
    """
    torch.get_num_threads()  # torch gives a new thread its number at the first question
    products, loops = (_local_threads(), _openmp_threads()) if alone else (None, None)
    before = loops[1]() if loops else 0, products(1) if products else 0
    if loops:
        loops[0](1)
    try:
        yield
    finally:
        if loops:
            loops[0](before[0])
        if products:
            products(before[1])


@contextmanager
def kernels_alone() -> Iterator[None]:
    """Inside this block `parallel` and `each` use all threads, and all else that the calling thread does in torch one.

    Torch's threads wait for the next loop by spinning, milliseconds long. Where short loops of torch and kernels take
    turns they would share the cores with ours: an E-step then takes three times as long.

    Example:
        >>> with kernels_alone():
        ...     threads = torch.get_num_threads(), available()
        >>> threads == (1, torch.get_num_threads())
        True
    """
    outer, count = getattr(_OURS, "count", 0), available()
    with one_thread():
        _OURS.count = count
        try:
            yield
        finally:
            _OURS.count = outer


def each(function: Callable[[int], Any], sizes: Sequence[int]) -> Iterator[Any]:
    """Results for 0, 1, ... in order, made at once on torch's number of threads, each of which has torch to itself.

    A thread of our own beside torch's would share the cores with threads of torch that wait by spinning; here there are
    none. Where one piece is most of the work, each is made by all threads instead, one after the other.

    Args:
        function: called once with every number; sees the caller's grad mode.
        sizes: how much work each is.

    Raises:
        BaseException: the first, in order, that a call raised, once no call is running.

    Example:
        >>> list(each(lambda i: i * i, [1, 1, 1]))
        [0, 1, 4]
    """
    threads = available()
    if threads == 1 or len(sizes) < 2 or max(sizes) * threads > sum(sizes) or not _openmp_threads():
        yield from map(function, range(len(sizes)))
        return
    grad = torch.is_grad_enabled()

    def alone(i: int) -> Any:
        with one_thread(), torch.set_grad_enabled(grad):
            return function(i)

    pool = _executor(threads)
    futures = deque(pool.submit(alone, i) for i in range(len(sizes)))
    try:
        while futures:
            # Taken off, so that a result that was used is not kept.
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
        wait([future for future in futures if future.running()])


def pieces(count: int, parts: int) -> list[tuple[int, int]]:
    """Cuts 0 ... count - 1 into at most `parts` ranges of nearly equal length, none of them empty.

    Args:
        count: how many items.
        parts: at most so many ranges.

    Returns:
        Pairs (first, one past the last).

    Example:
        >>> pieces(5, 2)
        [(0, 2), (2, 5)]
    """
    parts = max(1, min(parts, count))
    edges = [count * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges)) if count else []


def longest_first(lengths: Tensor | None, steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Order of the sequences in which the active ones are always the first ones.

    Args:
        lengths: (B,) int64, or None where all have `steps` steps.
        steps: T.
        batch: B.

    Returns:
        order: (B,) int64, and the lengths in that order, (B,) int64, at most T.

    Example:
        >>> longest_first(torch.tensor([1, 3, 2]), 3, 3)
        (tensor([1, 2, 0]), tensor([3, 2, 1]))
    """
    if lengths is None:
        return torch.arange(batch), torch.full((batch,), steps, dtype=torch.int64)
    ordered, order = lengths.detach().clamp(0, steps).sort(descending=True, stable=True)
    return order, ordered


def padded(states: int) -> int:
    """The number of states rounded up to whole panels of 4.

    Example:
        >>> padded(4), padded(5)
        (4, 8)
    """
    return (states + 3) // 4 * 4


def panels(table: Tensor, fill: float = 0.0, columns: int = 4) -> Tensor:
    """A table (K, K) cut into panels of some columns, each of which lies together: (K/4, K, 4), flat, K rounded up.

    Args:
        table: (K, K).
        fill: what is beyond K.
        columns: of a panel, a multiple of 4; so many columns at least, and rows rounded up to 4.

    Example:
        >>> panels(torch.ones(1, 1)).tolist()
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    K = table.shape[0]
    rows, wide = padded(K), -(-K // columns) * columns
    whole = table.new_full((rows, wide), fill)
    whole[:K, :K] = table
    return whole.view(rows, wide // columns, columns).permute(1, 0, 2).reshape(-1)


def empty(*shape: int, like: Tensor) -> Tensor:
    """A tensor of any content, of the dtype of another on the CPU, in large pages of memory where the system has them.

    NumPy asks for those and torch does not: the first touch of 50 MB then takes 15 ms, and in pages of 4 KiB 60.

    Example:
        >>> empty(2, 3, like=torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    return torch.from_numpy(np.empty(shape, like.numpy().dtype))


#: The operators of all kernels are defined in this fragment of torch's library "statespan".
LIBRARY = torch.library.Library("statespan", "FRAGMENT")


def define(
    schema: str, function: Callable[..., object], fake: Callable[..., object], differentiable: bool = False
) -> None:
    """Defines an operator with its CPU function and its shapes.

    `torch.library.custom_op` would do the same and import the compiler, about a second, with the first call.

    Args:
        schema: name, arguments and results, as `torch.library.Library.define` takes them.
        function: what runs on the CPU.
        fake: the same signature, gives empty results of the right shape.
        differentiable: whether the caller registers the gradient; otherwise asking for it is an error.
    """
    name = "statespan::" + schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, function, "CPU")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if not differentiable:

        def refuse(ctx: object, *gradients: Tensor | None) -> None:
            raise NotImplementedError(f"{name} has no gradient: second derivatives are not implemented")

        torch.library.register_autograd(name, refuse, lib=LIBRARY)
