"""Speed of the Kalman filter, smoother and EM against peers that are installed; only the ratios mean something."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from statespan.benchmarks import table, turns
from statespan.families_linear import linear_gaussian
from statespan.fit import EM
from statespan.method import prepare
from statespan.methods import Kalman
from statespan.sequences import read

SHAPES = ((1_000, 1), (100_000, 1), (200, 1_000))
SIZES = ((2, 1), (8, 4), (32, 16))
LONGEST_PEER = 2e8
"""A peer whose work, steps times states squared, is more than this is not run."""


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


def _ours(model: Any, y: np.ndarray) -> Callable[[], Any]:
    data, _ = read(y, model.emission.event)
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


def _dynamax(model: Any, y: np.ndarray) -> Callable[[], Any]:
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
    smooth = jax.jit(jax.vmap(lambda row: peer.smoother(parameters, row).smoothed_means))
    return lambda: smooth(y).block_until_ready()


PEERS = {"statsmodels": _statsmodels, "simdkalman": _simdkalman, "dynamax": _dynamax}


def smoothing(quick: bool = False) -> None:
    """Filter and smooth, time-invariant."""
    there = {name: make for name, make in PEERS.items() if importlib.util.find_spec(name)}
    if absent := [name for name in PEERS if name not in there]:
        print(f"kalman: not installed: {', '.join(absent)}; pip install {' '.join(absent)} to compare\n")
    rows = []
    for state, observed in SIZES[:2] if quick else SIZES:
        model = _model(state, observed)
        for length, batch in SHAPES[::2] if quick else SHAPES:
            y = np.random.default_rng(0).normal(size=(batch, length, observed))
            made = [_ours(model, y)]
            short = length * batch * state**2 <= LONGEST_PEER
            made += [make(model, y) for make in there.values()] if short else []
            times = turns(made, 5, 15.0)
            ratios = [f"{x / times[0]:.1f} x" for x in times[1:]] or ["not run"] * len(there)
            rows.append([f"state {state}, observed {observed}, {batch} of {length}", f"{times[0]:.2f} ms", *ratios])
    table("Kalman filter and smoother, time-invariant, float64", ["", "statespan", *there], rows)


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
    fitting()
