"""Every model and method that the contract holds for. A new part, rung, method or kernel joins by one line here.

A factory makes a small model in float64 (three states or units, four symbols or vectors); the suite asks the model
and its method what holds for it: `exact`, symbols or vectors, whether a kernel is registered.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import statespan as ss
from statespan.method import find_kernel

SYMBOLS, WIDTH = 4, 3


def rung(name: str) -> Callable[[], Any]:
    """A rung of the ladder, with embeddings large enough to matter."""
    return lambda: ss.ladder(name, vocabulary=SYMBOLS, width=WIDTH, spread=1.0, dtype=torch.float64, seed=1)


def hmm(emission: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: ss.hmm(states=WIDTH, emission=emission(), seed=2)


def moving(transition: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: ss.hmm(WIDTH, ss.Categorical(SYMBOLS), transition=transition(), seed=3)


def scatter(part: Any) -> Any:
    """Parameters that are not at their zeros and ones."""
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return part


def scattered(covariance: str) -> Callable[[], Any]:
    """A Gaussian emission with covariances that are not the identity."""

    return lambda: scatter(ss.Gaussian(dim=2, covariance=covariance, states=WIDTH))


def linear() -> Any:
    return ss.linear_gaussian(
        dynamics=[[0.8, 0.3], [-0.2, 0.7]],
        state_noise=[[0.5, 0.1], [0.1, 0.3]],
        observation=[[1.0, 0.5], [0.0, 1.0], [0.3, -0.4]],
        observation_noise=[[0.4, 0.1, 0.0], [0.1, 0.5, 0.05], [0.0, 0.05, 0.3]],
        initial_mean=[0.5, -1.0],
        initial_covariance=[[1.0, 0.2], [0.2, 0.8]],
    )


class Sway(ss.Part):
    """A function that is not affine: sin of a matrix times the state, and half of that product."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        product = z @ self.weight.T
        return product.sin() + product / 2


def nonlinear() -> Any:
    move = ss.NonlinearGaussian(Sway(2, 2), 2, covariance=[[0.3, 0.1], [0.1, 0.2]])
    seen = ss.NonlinearGaussian(Sway(2, 3), 3, covariance=[[0.4, 0.1, 0.0], [0.1, 0.5, 0.05], [0.0, 0.05, 0.3]])
    return ss.StateSpace(scatter(ss.NormalStart(2)), move, seen).double()


def switching() -> Any:
    """Two regimes that differ in how they move and in what they show, with jumps that look at the state."""
    return ss.switching_linear(
        states=2,
        dynamics=[[[0.9]], [[0.3]]],
        state_offset=[[0.5], [-1.0]],
        observation=[[[1.0], [0.5], [0.3]], [[1.0], [0.7], [-0.4]]],
        recurrent=True,
    )


FACTORIES: dict[str, Callable[[], Any]] = {
    **{name: rung(name) for name in ss.LADDER},
    "hmm/categorical": hmm(lambda: ss.Categorical(SYMBOLS)),
    "hmm/categorical-biased": hmm(lambda: scatter(ss.Categorical(SYMBOLS, WIDTH, bias=True))),
    "hmm/gaussian-full": hmm(scattered("full")),
    "hmm/gaussian-diagonal": hmm(scattered("diagonal")),
    "hmm/gaussian-spherical": hmm(scattered("spherical")),
    "hmm/gaussian-tied": hmm(scattered("tied")),
    "hmm/held": moving(lambda: ss.Dense(fixed=[[None, None, 0.1], [0.3, None, None], [None, 0.2, 0.5]])),
    "hmm/sparse": moving(lambda: ss.Sparse([[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2]])),
    "hmm/low-rank": moving(lambda: ss.LowRank(rank=2)),
    "hmm/embedded": lambda: ss.ladder(
        "bayes/rows-embedded/none/mixture-embedded",
        SYMBOLS,
        WIDTH,
        classes=WIDTH,
        spread=1.0,
        dtype=torch.float64,
        seed=1,
    ),
    "hmm/stationary": lambda: ss.hmm(WIDTH, ss.Categorical(SYMBOLS), ss.Stationary(), seed=3),
    "hmm/poisson": hmm(lambda: ss.Poisson(rate=[[0.5, 3.0], [2.0, 6.0], [8.0, 1.0]])),
    "hmm/bernoulli": hmm(lambda: scatter(ss.Bernoulli(2, WIDTH))),
    "hmm/multinomial": hmm(lambda: scatter(ss.Multinomial(3, WIDTH, trials=4))),
    "hmm/negative-binomial": hmm(lambda: scatter(ss.NegativeBinomial(2, WIDTH))),
    "hmm/exponential": hmm(lambda: scatter(ss.Exponential(2, WIDTH))),
    "hmm/gamma": hmm(lambda: scatter(ss.Gamma(2, WIDTH))),
    "hmm/log-normal": hmm(lambda: scatter(ss.LogNormal(2, WIDTH))),
    "hmm/beta": hmm(lambda: scatter(ss.Beta(2, WIDTH))),
    "hmm/student-t": hmm(lambda: scatter(ss.StudentT(2, states=WIDTH))),
    "hmm/gaussian-mixture": hmm(lambda: scatter(ss.GaussianMixture(2, 2, states=WIDTH))),
    "hmm/gaussian-factor": hmm(lambda: scatter(ss.FactorGaussian(2, 1, states=WIDTH))),
    "hmm/product": hmm(lambda: scatter(ss.Product(ss.Gaussian(1, states=WIDTH), ss.Poisson(1, WIDTH)))),
    "hmm/torch-gumbel": hmm(lambda: scatter(ss.Emission("Gumbel", 2, WIDTH))),
    "hmm/von-mises": hmm(lambda: scatter(ss.VonMises(2, WIDTH))),
    "linear-gaussian": linear,
    "nonlinear-gaussian": nonlinear,
    "discrete-kalman/poisson": lambda: ss.generalised_linear(linear(), "poisson"),
    "switching/linear": switching,
    "linearised/linear-gaussian": linear,
    "particles/linear-gaussian": linear,
    "particles/hmm": hmm(lambda: ss.Categorical(SYMBOLS)),
    "particles/hmm-gaussian": hmm(scattered("full")),
}

METHODS: dict[str, Callable[[], ss.Method]] = {
    "linearised/linear-gaussian": lambda: ss.Linearised(ss.Cubature()),
    "particles/linear-gaussian": lambda: ss.ParticleFilter(100),
    "particles/hmm": lambda: ss.ParticleFilter(100),
    "particles/hmm-gaussian": lambda: ss.ParticleFilter(100),
}
"""The method of a factory, where it is not the model's own."""

RANDOM = frozenset(name for name in METHODS if name.startswith("particles/"))
"""Those whose answers are random: what holds for them exactly is in ANY, the rest in tests/methods/test_particle.py."""


class Case(NamedTuple):
    """A model, its method, and what holds for the pair."""

    name: str
    model: Any
    method: Any

    @property
    def symbols(self) -> int | None:
        return self.model.emission.event.symbols

    @property
    def exact(self) -> bool:
        return self.method.exact(self.model)

    def data(self, n: int = 3, length: int = 5, seed: int = 0) -> torch.Tensor:
        """Sequences drawn from the model, (n, length, ...)."""
        return self.model.sample(n, length, seed=seed, method=self.method)[1]


def case(name: str) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FACTORIES[name]()
    method = METHODS[name]() if name in METHODS else ss.method_for(model)
    return Case(name, model, method)


ANYWHERE = frozenset(n for n in FACTORIES if "gaussian" in n)
"""Those whose vectors may lie anywhere, with tails no lighter than a normal's."""

ROUND = frozenset({"hmm/von-mises"})
"""Those whose means are directions: tests/parts/test_emissions.py has theirs."""

_ALL = {name: case(name) for name in FACTORIES}
ANY = list(FACTORIES)
CERTAIN = [n for n in ANY if n not in RANDOM]
EXACT = [n for n in CERTAIN if _ALL[n].exact]
APPROXIMATE = [n for n in CERTAIN if not _ALL[n].exact and _ALL[n].symbols is not None]
FINITE = [n for n in EXACT if isinstance(_ALL[n].method, ss.Forward)]
SYMBOLIC = [n for n in CERTAIN if _ALL[n].symbols is not None]
KERNELS = [n for n in CERTAIN if find_kernel(_ALL[n].model, _ALL[n].method) is not None]
