"""Times the kernels against what one would write without them: `python benchmarks/kernels.py [section ...]`.

Sections: lm (training step of an HMM language model), estep (against hmmlearn), softmax (linear cross-entropy),
viterbi, switch (lanes or BLAS by the number of states). Every figure is the least of several alternating runs in one
process.
"""

import argparse
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

recursion = importlib.import_module("statespan.kernels.forward_backward")
normalised = importlib.import_module("statespan.kernels.normalised_gather")
softmax = importlib.import_module("statespan.kernels.linear_cross_entropy")
viterbi = importlib.import_module("statespan.kernels.viterbi")


def least(functions: dict[str, Callable[[], Any]], repeats: dict[str, int]) -> dict[str, float]:
    """Least seconds of each function; those with the same number of repeats alternate."""
    times = {name: float("inf") for name in functions}
    for i in range(max(repeats.values())):
        for name, function in functions.items():
            if i < repeats[name]:
                start = time.perf_counter()
                function()
                times[name] = min(times[name], time.perf_counter() - start)
    return times


def lm(sizes: list[int]) -> None:
    V, B, T = 10_000, 32, 35
    print(f"HMM language model, V={V} B={B} T={T} float32, forward and backward, {torch.get_num_threads()} threads")
    for K in sizes:
        torch.manual_seed(0)
        leaves = [torch.randn(K), torch.randn(K, K), torch.randn(V, K), torch.randn(V)]
        leaves = [x.requires_grad_() for x in leaves]
        y = torch.randint(0, V, (T, B))

        def logspace(leaves: list[Tensor] = leaves, y: Tensor = y) -> Tensor:
            initial, table, weight, bias = leaves
            log_table, emission = table.log_softmax(1), (weight + bias[:, None]).log_softmax(0)[y]
            a = initial.log_softmax(0) + emission[0]
            for t in range(1, T):
                a = (a[:, :, None] + log_table).logsumexp(1) + emission[t]
            return a.logsumexp(1).sum()

        def scaled(leaves: list[Tensor] = leaves, y: Tensor = y) -> Tensor:
            initial, table, weight, bias = leaves
            table, likelihood = table.softmax(1), (weight + bias[:, None]).log_softmax(0)[y].exp()
            p, total = initial.softmax(0).expand(B, -1), 0.0
            for t in range(T):
                joint = p * likelihood[t]
                c = joint.sum(1, keepdim=True)
                total = total + c.log().sum()
                p = (joint / c) @ table
            return total  # pyright: ignore[reportReturnType]

        def emission(leaves: list[Tensor] = leaves, y: Tensor = y) -> Tensor:
            _, _, weight, bias = leaves
            normaliser = normalised.column_logsumexp(weight, bias)
            return normalised.gather_log_softmax(weight, bias, normaliser, y.view(-1)).view(T, B, -1).exp()

        def kernel(leaves: list[Tensor] = leaves, y: Tensor = y) -> Tensor:
            predicted = leaves[0].softmax(0).expand(B, -1)
            return recursion.forward_backward(predicted, leaves[1].softmax(1), emission(leaves, y))[0].sum()

        values = [
            p.detach() for p in (leaves[0].softmax(0).expand(B, -1).contiguous(), leaves[1].softmax(1), emission())
        ]
        values = [x.requires_grad_() for x in values]

        def step(function: Callable[[], Tensor], inputs: list[Tensor]) -> None:
            torch.autograd.grad(function(), inputs, allow_unused=True)

        functions = {
            "log space": functools.partial(step, logspace, leaves),
            "scaled": functools.partial(step, scaled, leaves),
            "kernels": functools.partial(step, kernel, leaves),
            "recursion alone": functools.partial(
                step, lambda v=values: recursion.forward_backward(*v)[0].sum(), values
            ),
            "emission alone": functools.partial(step, lambda e=emission: e().sum(), leaves[2:]),
        }
        few = 3 if K < 300 else 1
        kernel()
        times = least(functions, {n: few if n == "log space" else 15 for n in functions})
        a, b = logspace().item(), kernel().item()
        print(f"  K={K}: " + ", ".join(f"{n} {1e3 * t:.1f} ms" for n, t in times.items()), end=" ")
        print(f"-> {times['log space'] / times['kernels']:.1f}x, {times['scaled'] / times['kernels']:.1f}x; ", end="")
        print(f"values {a:.4f} {b:.4f}", flush=True)


def estep(sizes: list[int]) -> None:
    from hmmlearn.hmm import CategoricalHMM

    V, N = 1000, 1000
    print(f"E-step of {N} sequences of 20 to 100 symbols, V={V}, float64")
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 101, N)
    ends = np.cumsum(lengths)
    data = rng.integers(0, V, (ends[-1], 1))
    for K in sizes:
        initial, table, emission = (rng.dirichlet(np.ones(n), r) for n, r in ((K, 1), (K, K), (V, K)))
        model: Any = CategoricalHMM(K, implementation="scaling", n_features=V)
        model.startprob_, model.transmat_, model.emissionprob_ = initial[0], table, emission

        def theirs(model: Any = model) -> tuple[float, dict[str, Any]]:
            statistics, total = model._initialize_sufficient_statistics(), 0.0
            for start, end in zip(ends - lengths, ends, strict=True):
                X = data[start:end]
                lattice, log_prob, posteriors, forward, backward = model._fit_scaling(X)
                model._accumulate_sufficient_statistics(statistics, X, lattice, posteriors, forward, backward)
                total += log_prob
            return total, statistics

        # Buckets of similar length, each of at most some 12 MB, as any batching would make them.
        T = int(lengths.max())
        count = int(np.ceil(T * N * K / 1_500_000))
        buckets = []
        for chosen in np.array_split(np.argsort(-lengths, kind="stable"), count):
            symbols = np.zeros((int(lengths[chosen[0]]), len(chosen)), dtype=np.int64)
            for n, i in enumerate(chosen):
                symbols[: lengths[i], n] = data[ends[i] - lengths[i] : ends[i], 0]
            buckets.append((torch.from_numpy(symbols), torch.from_numpy(lengths[chosen])))
        E = torch.from_numpy(emission).t().contiguous()
        p, A = torch.from_numpy(initial[0]), torch.from_numpy(table).requires_grad_()

        def recursive(
            likelihood: Tensor, long: Tensor, p: Tensor = p, A: Tensor = A
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            start = p.repeat(likelihood.shape[1], 1).requires_grad_()
            likelihood = likelihood.detach().requires_grad_()
            value = recursion.forward_backward(start, A, likelihood, long)[0].sum()
            return value.detach(), torch.autograd.grad(value, (start, A, likelihood))

        def ours(buckets: list[Any] = buckets, E: Tensor = E, p: Tensor = p, A: Tensor = A) -> tuple[Tensor, ...]:
            total, starts, transitions, counts = (torch.zeros_like(x) for x in (p[0], p, A, E))
            for y, long in buckets:
                likelihood = E[y]
                value, (g_start, g_table, g_likelihood) = recursive(likelihood, long, p, A)
                total += value
                starts += p * g_start.sum(0)
                transitions += A.detach() * g_table
                counts.index_add_(0, y.view(-1), g_likelihood.mul_(likelihood).view(-1, E.shape[1]))
            return total, starts, transitions, counts

        value, _, transitions, counts = ours()
        likelihoods = [(E[y], long) for y, long in buckets]

        def alone(likelihoods: list[tuple[Tensor, Tensor]] = likelihoods, f: Any = recursive) -> None:
            for x in likelihoods:
                f(*x)

        functions: dict[str, Callable[[], Any]] = {"hmmlearn": theirs, "ours": ours, "recursion alone": alone}
        few = {4: 10, 16: 6, 64: 2}.get(K, 1)
        times = least(functions, {n: few if n == "hmmlearn" else max(5, 60 // (K // 16 + 1)) for n in functions})
        log_prob, statistics = theirs() if K < 100 else (value.item(), None)
        print(f"  K={K}: " + ", ".join(f"{n} {1e3 * t:.2f} ms" for n, t in times.items()), end=" ")
        print(
            f"-> {times['hmmlearn'] / times['ours']:.1f}x, {times['hmmlearn'] / times['recursion alone']:.1f}x", end=""
        )
        if statistics:
            worst = max(
                np.abs(transitions.detach().numpy() - statistics["trans"]).max(),
                np.abs(counts.numpy().T - statistics["obs"]).max(),
                abs(value.item() - log_prob),
            )
            print(f"; largest difference {worst:.1e}", end="")
        print(flush=True)


def linear_softmax() -> None:
    print("Linear layer and cross-entropy: torch, kernel (forward and backward; forward alone)")
    for dtype in (torch.float32, torch.float64):
        for N, m, V in ((700, 256, 10_000), (640, 70, 2_500)):
            torch.manual_seed(0)
            hidden = torch.randn(N, m, dtype=dtype, requires_grad=True)
            weight = (torch.randn(V, m, dtype=dtype) / m**0.5).requires_grad_()
            bias = torch.randn(V, dtype=dtype, requires_grad=True)
            index = torch.randint(0, V, (N,))
            leaves = (hidden, weight, bias)

            def theirs(leaves: tuple[Tensor, ...] = leaves, index: Tensor = index) -> Tensor:
                return cross_entropy(linear(*leaves), index, reduction="sum")

            def ours(leaves: tuple[Tensor, ...] = leaves, index: Tensor = index) -> Tensor:
                return -softmax.linear_log_softmax_gather(*leaves, index).sum()

            def step(f: Callable[[], Tensor], leaves: tuple[Tensor, ...] = leaves) -> None:
                torch.autograd.grad(f(), leaves)

            def alone(f: Callable[[], Tensor]) -> None:
                with torch.no_grad():
                    f()

            functions = {}
            for name, f in (("torch", theirs), ("kernel", ours)):
                functions[name] = functools.partial(step, f)
                functions[name + " forward"] = functools.partial(alone, f)
            times = least(functions, dict.fromkeys(functions, 25))
            print(
                f"  {dtype} N={N} m={m} V={V}: " + ", ".join(f"{n} {1e3 * t:.1f} ms" for n, t in times.items()), end=""
            )
            forward = times["torch forward"] / times["kernel forward"]
            print(f" -> {times['torch'] / times['kernel']:.2f}x, {forward:.2f}x", flush=True)


def best_path() -> None:
    print("Viterbi, T=100, float32: a loop of torch.max over (B, K, K), kernel")
    for B, K in ((32, 8), (32, 64), (1000, 16)):
        torch.manual_seed(0)
        initial, table, likelihood = torch.randn(B, K), torch.randn(K, K), torch.randn(100, B, K)

        def theirs(initial: Tensor = initial, table: Tensor = table, likelihood: Tensor = likelihood) -> Tensor:
            best, pointers = initial + likelihood[0], []
            for t in range(1, 100):
                best, pointer = (best[:, :, None] + table).max(1)
                best = best + likelihood[t]
                pointers.append(pointer)
            path = [best.argmax(1)]
            for pointer in reversed(pointers):
                path.append(pointer.gather(1, path[-1][:, None])[:, 0])
            return torch.stack(path[::-1])

        def ours(initial: Tensor = initial, table: Tensor = table, likelihood: Tensor = likelihood) -> Tensor:
            return viterbi.max_product(initial, table, likelihood)[1]

        assert theirs().equal(ours())
        times = least({"torch": theirs, "kernel": ours}, {"torch": 5, "kernel": 20})
        print(f"  B={B} K={K}: torch {1e3 * times['torch']:.1f} ms, kernel {1e3 * times['kernel']:.2f} ms", end="")
        print(f" -> {times['torch'] / times['kernel']:.1f}x", flush=True)


def switch() -> None:
    print("Forward and backward, lanes and BLAS")
    for dtype in (torch.float32, torch.float64):
        for B, T in ((1, 500), (32, 35), (1000, 50)):
            for K in (8, 16, 32, 64, 96, 128, 192, 256, 384):
                torch.manual_seed(0)
                values = (torch.rand(B, K), torch.rand(K, K).softmax(1), torch.rand(T, B, K))
                values = tuple(x.to(dtype).requires_grad_() for x in values)

                def run(most: int, values: tuple[Tensor, ...] = values) -> None:
                    recursion.LANES = most
                    torch.autograd.grad(recursion.forward_backward(*values)[0].sum(), values)

                run(0), run(1000)
                functions = {"lanes": functools.partial(run, 1000), "BLAS": functools.partial(run, 0)}
                times = least(functions, {"lanes": 10, "BLAS": 10})
                print(f"  {dtype} B={B} T={T} K={K}: " + ", ".join(f"{n} {1e3 * t:.2f} ms" for n, t in times.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", default=["lm", "estep", "softmax", "viterbi"])
    parser.add_argument("--states", type=int, nargs="*")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for section in options.sections:
        if section == "lm":
            lm(options.states or [128, 512])
        elif section == "estep":
            estep(options.states or [4, 16, 64, 256])
        else:
            {"softmax": linear_softmax, "viterbi": best_path, "switch": switch}[section]()


if __name__ == "__main__":
    main()
