"""Speed of the Kalman filter, smoother and EM against peers that are installed; only the ratios mean something."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from statespan.benchmarks import table, turns
from statespan.families.linear import linear_gaussian
from statespan.fit import EM
from statespan.method import prepare
from statespan.methods import Kalman
from statespan.sequences import read

SHAPES = ((1_000, 1), (100_000, 1), (200, 1_000))
SIZES = ((2, 1), (8, 4), (32, 16))
LONGEST = {"statsmodels": 3e7, "simdkalman": 3e7, "dynamax": 3e8, "dynamax, means alone": 3e8}
"""A peer whose work, steps times states squared, is more than this is not run."""

GAPS = 0.1
"""The share of entries that are missing, where some are."""


def _model(state: int, observed: int) -> Any:
    torch.manual_seed(0)
    dynamics = 0.95 * torch.linalg.qr(torch.randn(state, state, dtype=torch.float64))[0]
    return linear_gaussian(dynamics=dynamics, observation=torch.randn(observed, state), seed=0)


def _matrices(model: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        first = model.initial.gaussian(1)
        values = {
            "A": model.transition.matrix,
            "Q": model.transition.covariance,
            "C": model.emission.matrix,
            "R": model.emission.covariance,
            "m": first.mean[0],
            "P": first.scale[0] @ first.scale[0].T,
        }
        return {name: x.numpy().copy() for name, x in values.items()}


def _ours(model: Any, y: np.ndarray, inputs: np.ndarray | None = None) -> Callable[[], Any]:
    data, _ = read(y, model.emission.event, inputs=inputs)
    method = Kalman()

    def go() -> Any:
        with torch.no_grad():
            return method.hindsight(model, prepare(model, method, data), None, data)

    return go


def _statsmodels(model: Any, y: np.ndarray) -> Callable[[], Any]:
    from statsmodels.tsa.statespace.mlemodel import MLEModel

    given = _matrices(model)

    def go() -> None:
        for row in y:
            peer = MLEModel(
                row, k_states=len(given["A"]), initialization="known", constant=given["m"], stationary_cov=given["P"]
            )
            peer["design"], peer["obs_cov"], peer["transition"] = given["C"], given["R"], given["A"]
            peer["selection"], peer["state_cov"] = np.eye(len(given["A"])), given["Q"]
            peer.ssm.smooth()

    return go


def _simdkalman(model: Any, y: np.ndarray) -> Callable[[], Any]:
    import simdkalman  # pyright: ignore[reportMissingImports]

    given = _matrices(model)
    peer = simdkalman.KalmanFilter(given["A"], given["Q"], given["C"], given["R"])
    return lambda: peer.compute(y, 0, given["m"], given["P"], smoothed=True, observations=False)


def _pykalman(model: Any, y: np.ndarray) -> Any:
    import pykalman

    given = _matrices(model)
    return pykalman.KalmanFilter(given["A"], given["C"], given["Q"], given["R"], None, None, given["m"], given["P"])


def _dynamax(model: Any, y: np.ndarray, dynamics: np.ndarray | None = None, alone: bool = False) -> Callable[[], Any]:
    """Compiled for log p, smoothed means, and covariances once for all series, as ours; or for the means alone."""
    import jax  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM  # pyright: ignore[reportMissingImports]

    given = _matrices(model)
    peer = LinearGaussianSSM(len(given["A"]), len(given["C"]))
    parameters, _ = peer.initialize(
        jax.random.PRNGKey(0),
        initial_mean=given["m"],
        initial_covariance=given["P"],
        dynamics_weights=given["A"],
        dynamics_covariance=given["Q"],
        emission_weights=given["C"],
        emission_covariance=given["R"],
    )
    if dynamics is not None:
        parameters = parameters._replace(dynamics=parameters.dynamics._replace(weights=jax.numpy.asarray(dynamics)))

    def answers(row: Any) -> Any:
        found = peer.smoother(parameters, row)
        return (
            found.smoothed_means if alone else (found.marginal_loglik, found.smoothed_means, found.smoothed_covariances)
        )

    smooth = jax.jit(jax.vmap(answers, out_axes=0 if alone else (0, 0, None)))
    return lambda: jax.block_until_ready(smooth(y))


PEERS = {
    "statsmodels": _statsmodels,
    "simdkalman": _simdkalman,
    "dynamax": _dynamax,
    "dynamax, means alone": partial(_dynamax, alone=True),
}


def _installed() -> list[str]:
    """The peers that are there; says which are not."""
    there = [name for name in PEERS if importlib.util.find_spec(name.partition(",")[0])]
    if absent := [name for name in PEERS if name not in there and "," not in name]:
        print(f"kalman: not installed: {', '.join(absent)}; pip install {' '.join(absent)} to compare\n")
    return there


def _row(name: str, ours: dict[str, Callable[[], Any]], peers: dict[str, Callable[[], Any]], all_: list[str]) -> list:
    """Our times, then how many times longer each peer takes than our first."""
    times = turns([*ours.values(), *peers.values()], 5, 15.0)
    longer = dict(zip(peers, times[len(ours) :], strict=True))
    own = [f"{x:.2f} ms" for x in times[: len(ours)]]
    return [name, *own, *(f"{longer[p] / times[0]:.1f} x" if p in longer else "not run" for p in all_)]


def smoothing(quick: bool = False) -> None:
    """Filter and smooth, time-invariant: from data that are read, and from an array by the verb."""
    there, rows = _installed(), []
    for state, observed in SIZES[:2] if quick else SIZES:
        model = _model(state, observed)
        for length, batch in SHAPES[::2] if quick else SHAPES:
            y = np.random.default_rng(0).normal(size=(batch, length, observed))
            work = length * batch * state**2
            peers = {name: PEERS[name](model, y) for name in there if work <= LONGEST[name]}
            ours = {"": _ours(model, y), "verb": lambda model=model, y=y: model.smooth(y)}
            rows.append(_row(f"state {state}, observed {observed}, {batch} of {length}", ours, peers, there))
    table("Kalman filter and smoother, time-invariant, float64", ["", "statespan", "model.smooth", *there], rows)


def changing(quick: bool = False) -> None:
    """State 8, observed 4: matrices that vary in time, gaps and matrices of each series' own."""
    there, rows, state, observed = _installed(), [], 8, 4
    for length, batch in SHAPES[:1] if quick else SHAPES[::2]:
        rng = np.random.default_rng(0)
        y = rng.normal(size=(batch, length, observed))
        size = f"{batch} of {length}"
        turned = 0.95 * np.linalg.qr(rng.normal(size=(length, state, state)))[0]
        steps = np.broadcast_to(np.arange(length, dtype=float)[:, None], (batch, length, 1)).copy()
        observing = _model(state, observed).emission.matrix.detach()
        varying = linear_gaussian(dynamics=turned, observation=observing, seed=0)
        # Theirs is the move out of a step, ours the one into it.
        like, moves = _model(state, observed), np.roll(turned, -1, 0)
        peers = {name: PEERS[name](like, y, dynamics=moves) for name in there if name.startswith("dynamax")}
        rows.append(_row(f"varying in time, shared, {size}", {"": _ours(varying, y, steps)}, peers, there))
        gapped = np.where(rng.random(y.shape) < GAPS, np.nan, y)
        model = _model(state, observed)
        peers = {"statsmodels": _statsmodels(model, gapped)} if "statsmodels" in there else {}
        rows.append(_row(f"gaps of each series' own, {size}", {"": _ours(model, gapped)}, peers, there))
        if batch > 1:
            each = 0.95 * np.linalg.qr(rng.normal(size=(batch, state, state)))[0]
            apart = linear_gaussian(dynamics=each, observation=observing, seed=0)
            own = np.broadcast_to(np.arange(batch, dtype=float)[:, None, None], (batch, length, 1)).copy()
            rows.append(_row(f"matrices of each series' own, {size}", {"": _ours(apart, y, own)}, {}, there))
    table("Kalman filter and smoother, state 8, observed 4, float64", ["", "statespan", *there], rows)


def fitting() -> None:
    """Five iterations of EM, state 8, observed 4, T = 1,000."""
    if not importlib.util.find_spec("pykalman"):
        print("kalman, EM: not installed: pykalman; pip install pykalman to compare\n")
        return
    y = np.random.default_rng(0).normal(size=(1_000, 4))

    def ours() -> None:
        model = _model(8, 4)
        for part in (model.transition, model.emission):
            part.offset.requires_grad_(False)
        model.fit(y, by=EM(iterations=5, tolerance=0))

    every = ["transition_matrices", "observation_matrices", "transition_covariance", "observation_covariance"]
    every += ["initial_state_mean", "initial_state_covariance"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = turns([ours, lambda: _pykalman(_model(8, 4), y).em(y, n_iter=5, em_vars=every)], 4, 20.0)
    table(
        "Five EM iterations, state 8, observed 4, T = 1,000",
        ["", "statespan", "pykalman"],
        [["", f"{times[0]:.1f} ms", f"{times[1] / times[0]:.0f} x"]],
    )


def kalman(quick: bool = False) -> None:
    """Every section."""
    smoothing(quick)
    changing(quick)
    fitting()
