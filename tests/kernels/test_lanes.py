"""What the kernels share: threads, and how a fresh process starts."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from statespan.kernels import lanes

KERNELS = Path(lanes.__file__).parent

ALONE = """
import sys, types
package = types.ModuleType("statespan"); package.__path__ = []
kernels = types.ModuleType("statespan.kernels"); kernels.__path__ = [{path!r}]
sys.modules["statespan"] = package; sys.modules["statespan.kernels"] = kernels
import torch
from statespan.kernels.forward_backward import forward_backward
from statespan.kernels.normalised_gather import column_logsumexp, gather_log_softmax
from statespan.kernels.linear_cross_entropy import linear_log_softmax_gather
from statespan.kernels.viterbi import max_product
"""

USE = """
torch.set_num_threads(2)
weight = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
likelihood = gather_log_softmax(weight, None, column_logsumexp(weight), torch.arange(6)).exp().view(3, 2, 4)
table = torch.full((4, 4), 0.25, dtype=torch.float64)
value = forward_backward(table[:2], table, likelihood)[0].sum()
value = value + linear_log_softmax_gather(weight[:3], weight, None, torch.arange(3)).sum()
value.backward()
max_product(table[:2].log(), table.log(), likelihood.detach().log().view(6, 4), torch.arange(6).view(3, 2))
assert weight.grad.isfinite().all()
"""


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_fresh_process_imports_neither_numba_before_nor_the_compiler_after() -> None:
    """Also that the kernels need nothing else of the library: here there is nothing else."""
    out = python(
        ALONE.format(path=str(KERNELS))
        + 'print("numba" in sys.modules)\n'
        + USE
        + 'print("numba" in sys.modules, "torch._dynamo" in sys.modules)\n'
        + 'print([m for m in sys.modules if m.startswith("statespan.") and not m.startswith("statespan.kernels")])'
    )
    assert out.split("\n")[:3] == ["False", "True False", "[]"]


@pytest.mark.parametrize("home", [True, False])
def test_the_package_may_be_read_only(tmp_path: Path, home: bool) -> None:
    """Compiled code goes to the user's folder then, and nowhere where there is none."""
    copy, cache = tmp_path / "kernels", tmp_path / "home"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # A file of that name: not even root can write into it as into a folder.
    (copy / "__pycache__").touch()
    if home:
        cache.mkdir()
    else:
        cache.touch()
    use = "max_product(torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.long))"
    folder = {"HOME": str(cache), "XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)}
    python(ALONE.format(path=str(copy)) + use, PYTHONDONTWRITEBYTECODE="1", **folder)
    assert (copy / "__pycache__").read_bytes() == b""
    assert bool(list(tmp_path.rglob("*.nbi"))) == home


def test_after_a_fork_the_child_makes_its_own_threads() -> None:
    code = (
        ALONE.format(path=str(KERNELS))
        + "import os, warnings\n"
        + "warnings.simplefilter('ignore')\n"
        + "torch.set_num_threads(2)\n"
        + "from statespan.kernels import lanes\n"
        + "import time\n"
        + "lanes.parallel(lambda i: time.sleep(0.01), 4)\n"
        + "child = os.fork()\n"
        + "if child == 0:\n"
        + "    lanes.parallel(lambda i: time.sleep(0.01), 4)\n"
        + "    os._exit(7)\n"
        + "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert python(code).strip() == "7"


def test_parallel_does_every_number_once_on_several_threads() -> None:
    torch.set_num_threads(2)
    seen, threads, both = [], set(), threading.Barrier(2, timeout=120)

    def function(i: int) -> None:
        if i < 2:
            both.wait()
        seen.append(i)
        threads.add(threading.get_ident())

    lanes.parallel(function, 50)
    assert sorted(seen) == list(range(50))
    assert len(threads) == 2


def test_parallel_passes_errors_on() -> None:
    torch.set_num_threads(2)

    def function(i: int) -> None:
        if i == 7:
            raise KeyError(i)

    for threads in (1, 2):
        with pytest.raises(KeyError):
            lanes.parallel(function, 20, threads)


def test_pieces_cover_everything() -> None:
    assert lanes.pieces(0, 3) == []
    assert lanes.pieces(2, 5) == [(0, 1), (1, 2)]
    assert [i for a, b in lanes.pieces(17, 4) for i in range(a, b)] == list(range(17))


def test_longest_first() -> None:
    order, lengths = lanes.longest_first(torch.tensor([2, 9, 2, 5]), 6, 4)
    assert order.tolist() == [1, 3, 0, 2]
    assert lengths.tolist() == [6, 5, 2, 2]


@pytest.mark.skipif(not lanes.can_split(), reason="torch without MKL")
def test_one_thread_is_undone() -> None:
    setting = lanes._local_threads()
    assert setting is not None
    before = setting(0)
    setting(before)
    with lanes.one_thread():
        assert setting(1) == 1
    assert setting(before) == before


@pytest.mark.parametrize("threads", [1, 2])
def test_each_gives_results_in_order_with_torch_on_one_thread(threads: int) -> None:
    torch.set_num_threads(threads)
    used = set()

    def function(i: int) -> tuple[int, int, bool]:
        used.add(threading.get_ident())
        time.sleep(0.01 if i == 0 else 0.0)
        return i, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert list(lanes.each(function, [1] * 9)) == [(i, 1, False) for i in range(9)]
    assert (threading.get_ident() in used) == (threads == 1)
    assert torch.get_num_threads() == threads
    # One piece that is most of the work has all threads to itself.
    assert list(lanes.each(function, [9, 1])) == [(0, threads, True), (1, threads, True)]


def test_each_passes_the_first_error_on_when_nothing_runs_any_more() -> None:
    torch.set_num_threads(2)
    running = []

    def function(i: int) -> int:
        running.append(i)
        time.sleep(0.005)
        running.remove(i)
        if i in (3, 4):
            raise KeyError(i)
        return i

    with pytest.raises(KeyError, match="3"):
        list(lanes.each(function, [1] * 20))
    assert not running
