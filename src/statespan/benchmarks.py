"""Speed against peers, measured in one run; only the ratios mean something, since machines are noisy.

Each pair is timed in turns, and the least of several times counts.
"""

import copy
import importlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.fit import EM
from statespan.fit.em import group
from statespan.ladder.rungs import LADDER, find, ladder
from statespan.method import Prepared, prepare, run
from statespan.methods import Forward, MaxProduct, method_for
from statespan.parts.emissions import Categorical, Gaussian
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


class Workload(NamedTuple):
    """Sequences of one kind, a model of them, and hmmlearn's own at the same parameters.

    Args:
        model: ours.
        groups: the sequences as EM takes them.
        peer: hmmlearn's model.
        sequences: what hmmlearn takes, one array (T, D) a sequence.
    """

    model: Any
    groups: list[Sequences]
    peer: Any
    sequences: list[Any]

    def expect(self) -> float:
        """Our E-step: log-likelihood, and the statistics of all three parts."""
        return EM().expect(self.model, Forward(), self.groups)[0]

    @torch.no_grad()
    def decode(self) -> None:
        """Our best paths."""
        method = MaxProduct()
        constants = method.constants(self.model)
        for data in self.groups:
            method.decode(self.model, constants, data, 1)

    def peer_expect(self) -> float:
        """hmmlearn's, as its `fit` does it."""
        fit, total = getattr(self.peer, f"_fit_{self.peer.implementation}"), 0.0
        statistics = self.peer._initialize_sufficient_statistics()
        for y in self.sequences:
            lattice, log_prob, *answers = fit(y)
            self.peer._accumulate_sufficient_statistics(statistics, y, lattice, *answers)
            total += log_prob
        return total

    def share(self, count: int, implementation: str = "scaling") -> "Workload":
        """The first so many sequences only, for a peer that takes long."""
        peer = copy.copy(self.peer)
        peer.implementation = implementation
        return self._replace(sequences=self.sequences[:count], peer=peer)


def chains(states: int, dim: int | None, lengths: list[int]) -> Workload:
    """Random symbols of 1,000, or vectors, and a random model of them."""
    import numpy as np
    from hmmlearn.hmm import CategoricalHMM, GaussianHMM

    generator = np.random.default_rng(0)
    if dim is None:
        given = [generator.integers(0, 1000, n) for n in lengths]
        model = hmm(states=states, emission=Categorical(1000), seed=0)
        peer = CategoricalHMM(n_components=states, implementation="scaling", n_features=1000)
        peer.emissionprob_ = model.emission.probs.detach().numpy()
        sequences: list[Any] = [y[:, None] for y in given]
    else:
        given = sequences = [generator.normal(size=(n, dim)) for n in lengths]
        model = hmm(states=states, emission=Gaussian(dim=dim, covariance="diagonal"), seed=0)
        peer = GaussianHMM(n_components=states, implementation="scaling", covariance_type="diag")
        peer.n_features = dim
        peer.means_ = model.emission.mean.detach().numpy()
        peer.covars_ = model.emission.covariance.detach().diagonal(dim1=1, dim2=2).numpy().copy()
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    data, _ = read(given, model.emission.event)
    groups, _ = group(data, Forward().breadth(model, data))
    return Workload(model, groups, peer, sequences)


def ragged(count: int) -> list[int]:
    """Lengths from 20 to 100."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, 101, (count,), generator=generator).tolist()


def beside(ours: Callable[[], Any], theirs: Callable[[], Any], share: float, repeats: int) -> list[str]:
    """Our time, and how many times longer the peer takes (it does `share` of the work), on all threads and on one.

    All of it in turns; with one thread the peer stays as it was.
    """
    threads = torch.get_num_threads()

    def alone() -> None:
        torch.set_num_threads(1)
        try:
            ours()
        finally:
            torch.set_num_threads(threads)

    mine, peer, single = turns([ours, theirs, alone], repeats, 12.0)
    return [f"{mine:.1f}", f"{peer / share:.0f}", f"{peer / share / mine:.1f}x", f"{peer / share / single:.1f}x"]


def agree(name: str, ours: float, theirs: float) -> None:
    """Refuses to compare the speed of different numbers."""
    if not abs(ours - theirs) <= 1e-8 * abs(theirs):
        raise StatespanError(f"{name}: {ours!r} differs from the peer's {theirs!r}")


def has_hmmlearn(title: str) -> bool:
    """Whether there is something to compare with; says so where not."""
    if importlib.util.find_spec("hmmlearn") is None:
        print(f"{title}: hmmlearn is not installed; pip install hmmlearn to compare\n")
        return False
    return True


COLUMNS = ["", "asked", "ours ms", "peer ms", "ratio", "on one thread"]


def bench_estep(repeats: int) -> None:
    """The E-step, all three parts' statistics, against hmmlearn's."""
    if not has_hmmlearn("E-step"):
        return
    repeats, rows, rates = max(2, repeats // 2), [], []
    matrix = torch.randn(2048, 2048, dtype=torch.float64)
    gemm = 2 * 2048**3 / turns([lambda: matrix @ matrix], 4)[0] / 1e6
    many, one = ragged(1000), [100_000]
    cases = [
        ("symbols", None, many, {4: (9, 50), 16: (12, 100), 64: (18, 100), 256: (25, 100)}),
        ("vectors, D = 8", 8, many, {4: (4, 0), 16: (6, 0), 64: (9, 0)}),
        ("one sequence", None, one, {4: (2, 0), 16: (6, 0), 64: (9, 0), 256: (9, 0)}),
    ]
    for name, dim, lengths, asked in cases:
        for states, (scaling, log) in asked.items():
            # hmmlearn's time is linear in the number of sequences, or in the length of one.
            part = 1.0 if states < 64 else 0.1
            short = lengths[: int(part * len(lengths))] or [int(part * lengths[0])]
            whole, some = chains(states, dim, lengths), chains(states, dim, short)
            agree(f"E-step, {name}, K = {states}", some.expect(), some.peer_expect())
            share = sum(short) / sum(lengths)
            figures = beside(whole.expect, some.peer_expect, share, repeats if states < 256 else 2)
            rows.append([f"{name}, K = {states}, scaling", f"{scaling}x", *figures])
            if states == 256:
                rate = 6 * states**2 * sum(lengths) / float(figures[0]) / 1e6
                rates.append(f"{name}: {rate:.0f} GFLOP/s, {100 * rate / gemm:.0f} % of {gemm:.0f}")
            if log:
                least = some.share(max(1, len(short) // (10 if states < 64 else 50)), "log")
                share = sum(len(y) for y in least.sequences) / sum(lengths)
                rows.append(
                    [f"{name}, K = {states}, log", f"{log}x", *beside(whole.expect, least.peer_expect, share, 2)]
                )
    title = "E-step, 1,000 sequences of 20 to 100, or one of 100,000; float64; against hmmlearn (on one core)"
    table(title, COLUMNS, rows)
    print(f"K = 256, 6 K^2 operations a symbol, of this machine's float64 GEMM (asked: 40 %): {'; '.join(rates)}\n")


def bench_dynamax(repeats: int) -> None:
    """The E-step against dynamax's compiled smoother, on sequences of equal length (its counts are off on padding)."""
    try:
        jax = importlib.import_module("jax")
        hmm_smoother = importlib.import_module("dynamax.hidden_markov_model").hmm_smoother
    except ImportError:
        print("dynamax: not installed; pip install dynamax 'jax[cpu]' to compare\n")
        return
    if not has_hmmlearn("dynamax"):
        return
    jax.config.update("jax_enable_x64", True)
    rows = []
    for states, asked in {4: 4.5, 16: 13, 64: 11, 256: 25}.items():
        count = 1000 if states < 256 else 100
        work = chains(states, None, [60] * count)
        emission, y = work.model.emission, torch.stack([torch.as_tensor(y[:, 0]) for y in work.sequences])
        with torch.no_grad():
            log = jax.numpy.asarray(emission.log_likelihood(y, None, None, emission.constants()).numpy())
        initial, transition = (jax.numpy.asarray(x) for x in (work.peer.startprob_, work.peer.transmat_))
        smoother = jax.jit(jax.vmap(lambda each, pi=initial, a=transition: hmm_smoother(pi, a, each)))

        def theirs(smoother: Any = smoother, log: Any = log) -> Any:
            return jax.block_until_ready(smoother(log))

        agree(f"dynamax, K = {states}", work.expect(), float(theirs().marginal_loglik.sum()))
        rows.append([f"{count} of 60 symbols, K = {states}", f"{asked}x", *beside(work.expect, theirs, 1.0, repeats)])
    table("E-step against dynamax's smoother, compiled and warm, float64", COLUMNS, rows)


def bench_viterbi(repeats: int) -> None:
    """The best paths, from symbols to states, against hmmlearn's."""
    if not has_hmmlearn("Viterbi"):
        return
    import numpy as np

    repeats, rows = max(2, repeats // 2), []
    for name, lengths, asked in (("batch", ragged(1000), (2, 6, 12, 20)), ("one sequence", [100_000], (1, 2, 6, 10))):
        for states, ratio in zip((4, 16, 64, 256), asked, strict=True):
            part = 1.0 if states < 64 else 0.1
            short = lengths[: int(part * len(lengths))] or [int(part * lengths[0])]
            whole, some = chains(states, None, lengths), chains(states, None, short)
            given, joined = [y[:, 0] for y in some.sequences], np.concatenate(some.sequences)
            scores = [score for _, score in (some.model.decode(y, k=1) for y in given[:5])]
            theirs = [some.peer.decode(y[:, None])[0] for y in given[:5]]
            agree(f"Viterbi, {name}, K = {states}", float(torch.stack(scores).sum()), float(sum(theirs)))
            figures = beside(
                whole.decode,
                lambda peer=some.peer, joined=joined, short=short: peer.decode(joined, short),
                sum(short) / sum(lengths),
                repeats if states < 256 else 2,
            )
            rows.append([f"{name}, K = {states}", f"{ratio}x", *figures])
    table("Viterbi, 1,000 sequences of 20 to 100, or one of 100,000; float64; against hmmlearn", COLUMNS, rows)


def bench_em(repeats: int) -> None:
    """Ten iterations of EM, from a list of arrays to fitted parameters, against hmmlearn's fit."""
    if not has_hmmlearn("EM"):
        return
    import numpy as np

    work = chains(16, None, ragged(1000))
    joined, lengths = np.concatenate(work.sequences), [len(y) for y in work.sequences]
    given = [y[:, 0] for y in work.sequences]
    start = copy.deepcopy(work.model.state_dict())

    def ours() -> None:
        work.model.load_state_dict(start)
        work.model.fit(given, by=EM(iterations=10, tolerance=0))

    def theirs() -> None:
        work.peer.init_params, work.peer.n_iter, work.peer.tol = "", 10, -np.inf
        work.peer.startprob_ = initial
        work.peer.transmat_, work.peer.emissionprob_ = transition, emission
        work.peer.fit(joined, lengths)

    initial, transition = work.peer.startprob_.copy(), work.peer.transmat_.copy()
    emission = work.peer.emissionprob_.copy()
    rows = [["symbols, K = 16", "12x", *beside(ours, theirs, 1.0, max(2, repeats // 4))]]
    table("10 EM iterations, 1,000 sequences of 20 to 100, against hmmlearn scaling", COLUMNS, rows)


def bench_kalman(repeats: int) -> None:
    """The Kalman filter, smoother and EM against statsmodels, simdkalman, dynamax and pykalman."""
    from statespan.benchmarks_kalman import kalman

    kalman(quick=repeats < 16)


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
    "estep": bench_estep,
    "dynamax": bench_dynamax,
    "viterbi": bench_viterbi,
    "em": bench_em,
    "kalman": bench_kalman,
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
