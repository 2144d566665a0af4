"""Speed against peers, measured in one run; only the ratios mean something, since machines are noisy.

Each pair is timed in turns, and the least of several times counts.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.families import hmm
from statespan.fit import EM
from statespan.fit.em import group
from statespan.ladder.rungs import LADDER, find, ladder
from statespan.method import Prepared, prepare, run
from statespan.methods import Forward, method_for
from statespan.parts.emissions import Categorical
from statespan.sequences import Sequences, read
from statespan.tree import Shared, leaves, replace_leaves


def turns(functions: Iterable[Callable[[], Any]], repeats: int, seconds: float = 20.0) -> list[float]:
    """Least time of each function in milliseconds, timed in turns, for at most about so many seconds in all."""
    functions = list(functions)
    least, began = [float("inf")] * len(functions), time.perf_counter()
    for f in functions:
        f()
    for turn in range(repeats):
        for i, f in enumerate(functions):
            start = time.perf_counter()
            f()
            least[i] = min(least[i], 1e3 * (time.perf_counter() - start))
        if turn >= 1 and time.perf_counter() - began > seconds:
            break
    return least


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=None, padding=(0, 2), header_style="bold")
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    Console(width=120, highlight=False).print(drawn, "", sep="\n")


def gemm_rate(size: int = 1024) -> float:
    """This machine's float32 matrix product, in 1e9 operations a second on torch's threads."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / turns([lambda: a @ b], 10)[0] / 1e6


def log_space_step(states: int, symbols: int, y: Tensor) -> Callable[[], None]:
    """The step this library's users write first: log-space, a logsumexp over (B, K, K) a step, softmaxes hoisted."""
    emission = torch.randn(symbols, states, requires_grad=True)
    transition, initial = torch.randn(states, states, requires_grad=True), torch.zeros(states, requires_grad=True)

    def step() -> None:
        emission.grad = transition.grad = None
        log_emission, log_transition = emission.log_softmax(0)[y], transition.log_softmax(1)
        alpha = initial.log_softmax(0) + log_emission[0]
        for t in range(1, len(y)):
            alpha = (alpha[:, :, None] + log_transition).logsumexp(1) + log_emission[t]
        (-alpha.logsumexp(-1).sum()).backward()

    return step


def training_step(model: Any, data: Sequences, kernel: bool = True) -> Callable[[], None]:
    """One gradient of a window: forward and backward."""
    method = method_for(model)

    def step() -> None:
        model.zero_grad()
        log_prob = run(model, method, data, kernel=kernel).log_prob
        assert log_prob is not None
        (-log_prob.sum()).backward()

    return step


def bench_train(repeats: int) -> None:
    """An HMM's training step against a log-space autodiff loop."""
    rows, floor = [], gemm_rate()
    for states in (128, 512):
        y = torch.randint(0, 10_000, (35, 32))
        data = Sequences(y=y)
        model = ladder("hmm", vocabulary=10_000, width=states, seed=0)
        ours, scan, peer = turns(
            [training_step(model, data), training_step(model, data, False), log_space_step(states, 10_000, y)], repeats
        )
        product = 3 * 35 * 2 * 32 * states**2 / floor / 1e6
        rows.append(
            [f"K = {states}", f"{ours:.1f}", f"{scan:.1f}", f"{peer:.0f}", f"{peer / ours:.1f}x", f"{product:.1f}"]
        )
    title = "HMM training step, V = 10,000, B = 32, T = 35, float32 (asked: 10x, 60x)"
    table(title, ["", "kernel ms", "scan ms", "log-space loop ms", "ratio", "its GEMMs alone ms"], rows)


def recurrence(name: str, width: int, data: Sequences) -> Callable[[], None]:
    """The recurrence alone, forward and backward: from what symbols feed (its gradient taken) to the states."""
    model = ladder(name, vocabulary=10_000, width=width, seed=0)
    method, transition = method_for(model), model.transition
    with torch.no_grad():
        prepared = prepare(model, method, data)
    free = [x.detach().requires_grad_(x.is_floating_point()) for x in leaves(prepared.likelihoods)]
    likelihoods = replace_leaves(prepared.likelihoods, free)

    def step() -> None:
        model.zero_grad()
        if method.scores_from:
            constants = prepared.moves.constants.value
            move = transition.move.constants()
            tables = transition.move.tables(None, move)
            inner = constants.transition._replace(move=move, tables=None if tables is None else tables.value)
            moves = prepared.moves._replace(constants=Shared(constants._replace(transition=inner)))
            drive = likelihoods.fed.drive
            # An LSTM layer's input product is part of its time, so the move's is part of ours.
            if transition.move.fed and hasattr(transition.move, "input"):
                drive = transition.move.drive(drive, move)
            fed = likelihoods._replace(fed=likelihoods.fed._replace(drive=drive))
            states = run(model, method, data, None, ("predicted",), constants, Prepared(moves, fed, None)).predicted
            leaves(states)[0].sum().backward()
        else:
            moves = prepared.moves._replace(tables=transition.tables(None, transition.constants()))
            log_prob = run(model, method, data, None, ("log_prob",), 0, Prepared(moves, likelihoods, None)).log_prob
            assert log_prob is not None
            log_prob.sum().backward()

    return step


def bench_rungs(repeats: int) -> None:
    """Every rung's recurrence against nn.LSTM's layer, and its whole step against an LSTM language model's."""
    length, batch, symbols, width = 35, 20, 10_000, 256
    y = torch.randint(0, symbols, (length, batch))
    data = Sequences(y=y)
    layer, inputs = nn.LSTM(width, width), torch.randn(length, batch, width, requires_grad=True)
    embedding, output = nn.Embedding(symbols, width), nn.Linear(width, symbols)
    output.weight = embedding.weight

    def layer_step() -> None:
        layer.zero_grad()
        layer(inputs)[0].sum().backward()

    def language_step() -> None:
        for module in (layer, embedding, output):
            module.zero_grad()
        embedded = torch.cat([embedding(torch.zeros(1, batch, dtype=torch.long)), embedding(y[:-1])])
        logits = output(layer(embedded)[0])
        nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").backward()

    rows = []
    for name in LADDER:
        slow = name.startswith(("hmm/tensor", "hmm/gated"))
        model = ladder(name, vocabulary=symbols, width=width, seed=0)
        if find(name).move.sizes == 2 or name == "gru":
            alone, reference = float("nan"), 1.0
        else:
            alone, reference = turns([recurrence(name, width, data), layer_step], 2 if slow else repeats)
        whole, peer = turns([training_step(model, data), language_step], 2 if slow else repeats)
        note = ""
        if name.startswith("hmm/gated"):
            note = f"{1e6 * alone / (2 * length * batch * width**2):.2f} ns an exponential (2 K^2 a token)"
        if name.startswith("hmm/tensor"):
            note = f"{6e-6 * length * batch * width**3 / alone:.0f} GFLOP/s (6 K^3 a token)"
        ratio = "torch's own" if alone != alone else f"{alone / reference:.2f}"
        rows.append(
            [name, "" if alone != alone else f"{alone:.1f}", ratio, f"{whole:.1f}", f"{whole / peer:.2f}", note]
        )
    title = "Rungs at width 256, B = 20, T = 35, V = 10,000, float32, forward and backward (asked: 1.3, 1.1)"
    table(title, ["rung", "recurrence ms", "/ nn.LSTM layer", "whole step ms", "/ LSTM model", "its floor"], rows)


def bench_expect(repeats: int) -> None:
    """The E-step of a categorical HMM against hmmlearn's scaled one."""
    try:
        import numpy as np
        from hmmlearn.hmm import CategoricalHMM
    except ImportError:
        print("E-step: hmmlearn is not installed; pip install hmmlearn to compare")
        return
    rows = []
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 1000, n) for n in generator.integers(20, 101, 1000)]
    joined, lengths = np.concatenate(sequences)[:, None], [len(s) for s in sequences]
    for states in (4, 16, 64, 256):
        model = hmm(states=states, emission=Categorical(1000), seed=0)
        peer = CategoricalHMM(n_components=states, implementation="scaling", n_features=1000)
        peer.startprob_ = model.initial.probs().detach().numpy()
        peer.transmat_, peer.emissionprob_ = (
            model.transition.probs.detach().numpy(),
            model.emission.probs.detach().numpy(),
        )
        groups, _ = group(read(sequences, model.emission.event)[0], states)
        em, answers = EM(), {}

        def ours(model: Any = model, groups: Any = groups, em: EM = em, answers: dict = answers) -> None:
            answers["ours"] = em.expect(model, Forward(), groups)[0]

        def theirs(peer: Any = peer, answers: dict = answers) -> None:
            stats = peer._initialize_sufficient_statistics()
            answers["theirs"] = 0.0
            start = 0
            for n in lengths:
                x = joined[start : start + n]
                start += n
                lattice, log_prob, posteriors, forward, backward = peer._fit_scaling(x)
                answers["theirs"] += log_prob
                peer._accumulate_sufficient_statistics_scaling(stats, x, lattice, posteriors, forward, backward)

        times = turns([ours, theirs], max(2, repeats // 4), 30.0)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        single = turns([ours], max(2, repeats // 4))[0]
        torch.set_num_threads(threads)
        if abs(answers["ours"] - answers["theirs"]) > 1e-8 * abs(answers["theirs"]):
            raise StatespanError(f"E-step: {answers['ours']} differs from hmmlearn's {answers['theirs']}")
        rate = 6 * states**2 * sum(lengths) / times[0] / 1e6
        ratios = [f"{times[1] / least:.1f}x" for least in (times[0], single)]
        rows.append([f"K = {states}", f"{times[0]:.1f}", f"{times[1]:.0f}", *ratios, f"{rate:.1f}"])
    title = "E-step, 1,000 sequences of 20 to 100 symbols of 1,000, float64, against hmmlearn scaling (asked: 5x)"
    table(title, ["", "ours ms", "hmmlearn ms", "ratio", "ratio on one thread", "GFLOP/s (6 K^2 a symbol)"], rows)


FIRST = """
import time
a = time.perf_counter(); import torch
b = time.perf_counter(); import statespan as ss
c = time.perf_counter(); model = ss.hmm(states=4, emission=ss.Categorical(10), seed=0)
d = time.perf_counter(); (-model.log_prob([[1, 2, 3], [4, 5]]).mean()).backward()
e = time.perf_counter(); print(b - a, c - b, e - d)
"""


def bench_import(repeats: int) -> None:
    """What a fresh process waits for."""
    runs = []
    for _ in range(max(3, repeats // 4)):
        out = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True).stdout
        runs.append([float(x) for x in out.split()])
    least = [min(column) for column in zip(*runs, strict=True)]
    title = "A fresh process, seconds (asked: import at most 0.3 beyond torch's, first log_prob and gradient 1.5)"
    table(title, ["import torch", "import statespan", "first log_prob and gradient"], [[f"{x:.2f}" for x in least]])


BENCHMARKS: dict[str, Callable[[int], None]] = {
    "train": bench_train,
    "rungs": bench_rungs,
    "expect": bench_expect,
    "import": bench_import,
}
"""Every benchmark by the name the command line knows."""


def main(only: list[str], quick: bool = False) -> None:
    """Run the benchmarks and print their tables.

    Args:
        only: names; empty runs all.
        quick: fewer repeats.

    Raises:
        StatespanError: an unknown name.
    """
    for name in only:
        if name not in BENCHMARKS:
            raise StatespanError(f"bench: unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, float32 GEMM {gemm_rate():.0f} GFLOP/s\n")
    for name in only or BENCHMARKS:
        BENCHMARKS[name](4 if quick else 16)
