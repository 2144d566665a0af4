"""What a part is: a conditional distribution as an nn.Module, and the interfaces that methods ask of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from inspect import BoundArguments, signature
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from statespan.belief import Diffuse, Gaussian
from statespan.errors import StatespanError
from statespan.sequences import Event
from statespan.tree import Shared, Tree, tree_map, unstack

P = TypeVar("P", bound="Part")
PARTS: dict[str, type["Part"]] = {}
"""Every part by the name it is saved under."""


def part_name(cls: type) -> str:
    """The name a class is saved under: its package and its own name, not its file, so that files may move."""
    return f"{cls.__module__.split('.')[0]}.{cls.__qualname__}"


class Part(nn.Module):
    """The base of every part: an nn.Module that remembers the arguments it was made with.

    A subclass is known by name from then on, so that `save` writes the name and the `recipe`, and `load` makes the
    part again without running code from the file.

    Example:
        >>> import statespan as ss
        >>> counts = ss.Poisson(dim=2)
        >>> counts.sized(3).rate.shape
        torch.Size([3, 2])
        >>> ss.Poisson(rate=[[1.0], [9.0]]).recipe()[0][:2]
        (1, 2)
    """

    _arguments: tuple[tuple, dict[str, Any]]

    def __new__(cls: type[P], *args: Any, **kwargs: Any) -> P:
        """Remember the arguments."""
        self = object.__new__(cls)
        object.__setattr__(self, "_arguments", (args, kwargs))
        return self

    def extra_repr(self) -> str:
        """The numbers and names it was made with, for nn.Module's repr."""
        made = self._with({}).arguments
        return ", ".join(f"{name}={x!r}" for name, x in made.items() if isinstance(x, (bool, int, float, str)))

    def recipe(self) -> tuple[tuple, dict[str, Any]]:
        """Arguments, positional and by name, that make a part of this shape: those it was made with.

        Numbers, strings, None, arrays of a few numbers, and other parts; parameters are tensors of a file, so a part
        that was made from these remembers their sizes instead.
        """
        return self._arguments

    def remember(self, **arguments: Any) -> None:
        """Put other arguments in place of those it was made with: sizes, where values were given as tensors.

        Args:
            arguments: by name.
        """
        bound = self._with(arguments)
        object.__setattr__(self, "_arguments", (bound.args, bound.kwargs))

    def again(self: P, **arguments: Any) -> P:
        """A new part made like this one, but for some arguments.

        Args:
            arguments: by name.
        """
        bound = self._with(arguments)
        return type(self)(*bound.args, **bound.kwargs)

    def sized(self: P, states: int) -> P:
        """The same part for K states, if it is made for `states` and does not know how many yet.

        Args:
            states: K.
        """
        unsized = getattr(self, "states", None) is None and "states" in signature(self.__init__).parameters
        return self.again(states=states) if unsized else self

    def _with(self, arguments: dict[str, Any]) -> BoundArguments:
        positional, named = self._arguments
        bound = signature(self.__init__).bind(*positional, **named)
        bound.arguments.update(arguments)
        return bound

    @property
    def takes_inputs(self) -> bool:
        """Whether it sees the inputs u: it knows their width, as `inputs` or `controls`, or says so itself."""
        return bool(getattr(self, "inputs", 0) or getattr(self, "controls", 0))

    def log_prior(self) -> Tensor | float:
        """The log-density of the parameters under the part's prior, up to a constant; 0 without one.

        Fits maximise log-likelihood plus this. A part whose `maximize` is a closed form takes its prior in there.
        """
        return 0.0

    def __init_subclass__(cls, **kwargs: Any):
        """Make the class known to `load`; a name that another file of the package has taken is refused."""
        super().__init_subclass__(**kwargs)
        known = PARTS.setdefault(part_name(cls), cls)
        if known.__module__ != cls.__module__:
            raise StatespanError(f"{part_name(cls)} is a part of {known.__module__} already; choose another class name")
        PARTS[part_name(cls)] = cls


def positive(log: str, doc: str) -> Any:
    """A property of a part: the positive parameter that it keeps as its logarithm.

    Args:
        log: the name of that.
        doc: what the parameter is.
    """
    return property(lambda part: getattr(part, log).exp(), doc=doc)


class Generative(ABC):  # noqa: B024
    """A part that can be simulated: its `forward` returns a torch Distribution.

    Initial: `forward(shape, u)`; transition and emission: `forward(z, u)`. An autoregressive transition is none: it
    needs what y left behind too.
    """

    autoregressive: ClassVar[bool] = False


# ------------------------------------------------------------------------------------------ finite states


class FiniteInitial(ABC):
    """p(z_1) over K states."""

    states: int

    together: bool = False
    """Whether it shares parameters with the transition, whose M-step it then does too: `maximize_with(stats, moves)`,
    from its own statistics and the transition's."""

    @abstractmethod
    def probs(self) -> Tensor:
        """(K,), sums to one."""

    def given(self, u: Tree, probs: Tensor) -> Shared:
        """p(z_1) under the inputs (T, B, U), (K,) or (B, K); `probs` is what `probs()` gave."""
        return Shared(probs)

    def statistics(self, counts: Tensor, u: Tree) -> Tree:
        """Sums over sequences of the expected first states (B, K), for `maximize`."""
        return counts.sum(0)

    def permute(self, order: Tensor) -> None:
        """Put the states in another order: state k becomes what `order[k]` was.

        Raises:
            StatespanError: how this part does that is not known, or the order of its states matters.
        """
        raise not_movable(self)


class FiniteTransition(ABC):
    """p(z_t | z_{t-1}) over K states, as an operator on tables.

    `fed` is what y_{t-1} left behind (`feed`), for an autoregressive transition; None for the others.
    """

    autoregressive: ClassVar[bool] = False
    states: int

    @property
    def owners(self) -> Tensor | None:
        """(K,) integers, where one public state stands for several of this chain (durations, higher orders).

        They are the public state of each; the emission, labels and answers speak of those. None: they are the same.
        """
        return None

    @property
    def public_states(self) -> int:
        """How many states the emission tells apart."""
        return self.states if self.owners is None else int(self.owners.max()) + 1

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone: stochastic tables from logits."""

    @abstractmethod
    def tables(self, u: Tree, constants: Tree) -> Tree:
        """What `push` needs, for all t: `Shared` or (T, B, ...)."""

    @abstractmethod
    def push(self, probs: Tensor, tables: Tree, fed: Tree) -> Tensor:
        """P A: (B, K) to (B, K), from z_{t-1} to z_t."""

    @abstractmethod
    def pull(self, values: Tensor, tables: Tree, fed: Tree) -> Tensor:
        """A f: (B, K) to (B, K), from z_t back to z_{t-1}."""

    @abstractmethod
    def dense(self, tables: Tree, fed: Tree) -> Tensor:
        """A itself, (K, K) or (B, K, K)."""

    def best(self, score: Tensor, tables: Tree, fed: Tree) -> tuple[Tensor, Tensor]:
        """The k best ways into each state, by the best ways (B, K, k) before: log-probabilities, best first.

        With each comes where it came from: the previous state times k plus the rank there. Ties go to the lower.
        """
        return best_ways(score, self.dense(tables, fed))

    def stationary(self) -> Tensor:
        """The distribution that a move leaves as it is, pi A = pi, (K,)."""
        return stationary(self.dense(unstack(self.tables(None, self.constants()), 1)[0], None))

    def feed(self, y: Tensor, u: Tree, constants: Tree) -> Tree:
        """What y_t leaves behind for the next move, for all t at once; only for an autoregressive transition."""
        return None

    def average(self, constants: Tree, symbol_probs: Tensor) -> Tensor:
        """The table with the missing symbol summed out, sum over v of p(v | k) A_v[k, l]: (K, K)."""
        raise NotImplementedError

    def permute(self, order: Tensor) -> None:
        """Put the states in another order: state k becomes what `order[k]` was.

        Raises:
            StatespanError: how this part does that is not known, or the order of its states matters.
        """
        raise not_movable(self)


@torch.no_grad()
def permute(part: Any, order: Tensor) -> None:
    """Put a part's states in another order: state k becomes what `order[k]` was.

    By its own `permute(order)`; an emission without one has states first in every parameter, or none.

    Args:
        part: of K states.
        order: (K,) integers.

    Raises:
        StatespanError: how this part does that is not known, or the order of its states matters.
    """
    if hasattr(part, "permute"):
        part.permute(order)
        return
    for p in part.parameters():
        if p.dim() and len(p) == len(order):
            p.copy_(p[order])
        elif p.dim() == 0 or len(p) != 1:
            raise not_movable(part)


def not_movable(part: Any) -> StatespanError:
    """The error of a part whose states cannot be put in another order."""
    return StatespanError(
        f"align: the states of {type(part).__name__} cannot be put in another order: some are held, tied or have "
        "priors of their own, or it is not known how; give the part a method permute(order)"
    )


def mixed(probs: Tensor, each: Distribution) -> MixtureSameFamily:
    """The mixture under probabilities (..., K) of the states' distributions, whose batch ends in K."""
    weights = Categorical(probs=probs, validate_args=False)
    return MixtureSameFamily(weights, each.expand(probs.shape), validate_args=False)


def scaled(log: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials (..., K) divided by the largest of them, and that one's logarithm (...) in float64."""
    top = log.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    return (log - top).exp(), top[..., 0].double()


def expected_log(counts: Tensor, probs: Tensor) -> Tensor:
    """Sum of counts times log p; a count of zero adds nothing whatever p."""
    there = counts > 0
    return (torch.where(there, counts, 0.0) * torch.where(there, probs, 1.0).log()).sum()


def best_ways(score: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The k best ways into each state by a dense table, (K, K) or (B, K, K): see `FiniteTransition.best`."""
    k, log = score.shape[-1], table.to(score).log()
    ways = (score[:, :, :, None] + (log if log.dim() == 3 else log[None])[:, :, None, :]).flatten(1, 2)
    if k == 1:
        back = ways.argmax(1, keepdim=True)
        return ways.gather(1, back).mT, back.mT
    best, back = ways.sort(dim=1, descending=True, stable=True)
    return best[:, :k].mT, back[:, :k].mT


def stationary(table: Tensor) -> Tensor:
    """Solve pi A = pi, sum of pi = 1, for a stochastic matrix A (K, K), or several (..., K, K).

    Raises:
        StatespanError: the chain has more than one such distribution: it falls into parts that do not meet.
    """
    eye = torch.eye(table.shape[-1], dtype=table.dtype, device=table.device)
    column, info = torch.linalg.solve_ex((eye - table + 1).mT, torch.ones_like(table[..., :1]))
    solution = column[..., 0]
    with torch.no_grad():
        wrong = ((column.mT @ table).mT - column).abs().max() + (solution.sum(-1) - 1).abs().max()
        if bool((info != 0).any()) or not bool(wrong < 1e3 * torch.finfo(table.dtype).eps ** 0.75):
            raise StatespanError(
                "the transition has no single stationary distribution: its states fall into sets that do not reach "
                "each other; give initial= instead"
            )
    return solution.clamp_min(0)


class MatrixTransition(FiniteTransition):
    """A move by one stochastic matrix A, the same at every step: only `probs` is to be written.

    Kernels for dense tables serve every one of these. Expected counts of moves come as `statistics(counts, u)`.
    """

    @property
    @abstractmethod
    def probs(self) -> Tensor:
        """A, (K, K): `probs[i, j]` is p(next = j | now = i)."""

    def constants(self) -> Tensor:
        """A, (K, K)."""
        return self.probs

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """A, the same at every step."""
        return Shared(constants)

    def push(self, probs: Tensor, tables: Tensor, fed: Tree = None) -> Tensor:
        """P A."""
        return probs @ tables

    def pull(self, values: Tensor, tables: Tensor, fed: Tree = None) -> Tensor:
        """A f."""
        return values @ tables.mT

    def dense(self, tables: Tensor, fed: Tree = None) -> Tensor:
        """A."""
        return tables

    def stationary(self) -> Tensor:
        """The distribution that a move leaves as it is, pi A = pi, (K,)."""
        return stationary(self.probs)

    def statistics(self, counts: Shared, u: Tree) -> Tensor:
        """Expected counts of moves, (K, K), from a tree like the tables."""
        return counts.value

    def expected_log(self, stats: Tensor) -> Tensor:
        """Sum of expected counts times log A: what an M-step maximises, but for the prior."""
        return expected_log(stats, self.probs)


class FiniteEmission(ABC):
    """p(y_t | z_t) for K states; `states` is None until it is known how many.

    `u` are the inputs of each step; for an emission that looks back (`lags` above 0) a pair: the inputs, and the `lags`
    observations before each step, (T, B, lags, D), the latest first.

    An emission that is `expanded` tells the chain's own states apart where these are more than the public ones (a
    regression that looks back on past regimes): K below is then how many those are.

    For EM it also has `statistics(y, u, weights, observed)`, sums under state weights (T, B, K) that add up over
    batches, and `maximize(stats)`. `begin(y, u, observed)` starts it from the data.
    """

    event: Event
    states: int | None
    lags: int = 0
    expanded: bool = False

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone."""

    @abstractmethod
    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tensor:
        """Log p(y_t | z_t = k): (T, B, K), with a missing coordinate marginalised; a missing row may be anything."""

    def likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> tuple[Tensor, Tensor]:
        """The same divided by its largest value over states, (T, B, K), and that value's logarithm, (T, B) float64."""
        return scaled(self.log_likelihood(y, u, observed, constants))

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """The distribution of y under a distribution (..., K) over states: what each emits (`forward`), mixed."""
        emission: Any = self
        z, axis = torch.arange(probs.shape[-1], device=probs.device), probs.dim() - 1
        if getattr(self, "takes_inputs", False):
            z = z.expand(probs.shape)
            u = tree_map(lambda x: x.unsqueeze(axis).expand(*probs.shape, *x.shape[axis:]), u)
        return mixed(probs, emission.forward(z, u))

    @abstractmethod
    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean (for symbols the mode) of y under state probabilities (T, B, K) and what of y is there."""


class AdditiveEmission(FiniteEmission):
    """p(y_t | one state of each of C chains), where each chain adds a contribution of its own.

    As an emission of finite states its K = K_1 K_2 ... are the joint ones, the last chain's fastest. What follows lets
    a method keep the chains apart: a table (..., K_c) a chain in place of one (..., K).
    """

    sizes: tuple[int, ...]

    def sized(self, states: int) -> Any:
        """Itself, if it knows its chains; their product alone does not tell them.

        Raises:
            StatespanError: it does not.
        """
        if self.sizes:
            return self
        name = type(self).__name__
        raise StatespanError(f"{name} is shared by chains: give {name}(chains=[2, 3]), or use ss.factorial_hmm")

    def of_chains(self, sizes: Sequence[int]) -> Any:
        """The same emission for chains of these sizes, if it has none yet."""
        return self if self.sizes else cast("Part", self).again(chains=list(sizes))

    @abstractmethod
    def apart(self, z: Tensor) -> Distribution:
        """The distribution of y given one state of each chain, (..., C) integers."""

    @abstractmethod
    def evidence(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tree:
        """What `expected` needs of the data: all that depends on no chain."""

    @abstractmethod
    def expected(self, chain: int, others: Sequence[Tensor], evidence: Tree) -> Tensor:
        """E log p(y_t | z of `chain` = k, the rest), (T, B, K_c), the rest independent and as (T, B, K_c') each."""

    @abstractmethod
    def chain_statistics(
        self, y: Tensor, u: Tree, chains: Sequence[Tensor], weights: Tensor, observed: Tensor | None
    ) -> Tree:
        """`statistics` under independent chains (T, B, K_c), each step as often as its weight (T, B)."""

    @abstractmethod
    def chain_fill(self, y: Tensor, u: Tree, observed: Tensor | None, chains: Sequence[Tensor]) -> Tensor:
        """`fill` under independent chains (T, B, K_c)."""


# --------------------------------------------------------------------------------------- linear Gaussian


class Affine(NamedTuple):
    """x -> A x + b + scale e, with e standard normal.

    Where inputs change one of them it has their axes in front, time and batch: (T, B, E, D), or (T, 1, E, D) where it
    is the same for all sequences.

    Args:
        matrix: A, (E, D).
        offset: b, (E,).
        scale: (E, M), a root of the covariance, scale scale'.
    """

    matrix: Tensor
    offset: Tensor
    scale: Tensor


class GaussianInitial(ABC):
    """p(z_1), normal."""

    @abstractmethod
    def gaussian(self, batch: int) -> Gaussian | Diffuse:
        """The belief about z_1 for B sequences."""


class NonlinearPart(ABC):
    """A transition or an emission with normal noise about a function of the state."""

    autoregressive: ClassVar[bool] = False
    event: Event

    @abstractmethod
    def moments(self, z: Tensor, u: Tree) -> tuple[Tensor, Tensor]:
        """Mean (..., E) and a root of the noise's covariance, (E, M) or (..., E, M), of states (..., D)."""

    def approximate(self, rule: Callable[..., Affine], belief: Gaussian, u: Tree) -> Affine:
        """The affine part that stands for this one under a normal belief (..., D), by a rule such as `Unscented`."""
        return rule(self.moments, belief, u)


class LinearPart(NonlinearPart):
    """A transition or an emission that is affine with normal noise."""

    @abstractmethod
    def affine(self, u: Tree) -> Affine:
        """A, b and the noise's scale under inputs (..., U)."""

    def moments(self, z: Tensor, u: Tree) -> tuple[Tensor, Tensor]:
        """A z + b, and the scale."""
        affine = self.affine(u)
        return (affine.matrix @ z[..., None])[..., 0] + affine.offset, affine.scale

    def approximate(self, rule: Callable[..., Affine], belief: Gaussian, u: Tree) -> Affine:
        """Itself, whatever the rule."""
        return self.affine(u)


# ------------------------------------------------------------------------------------------------- cells


class CellInitial(ABC):
    """The state a recurrent network starts from, and the symbol it is fed first."""

    symbol: int

    @abstractmethod
    def start(self, batch: int) -> Tree:
        """The state before the first move, (B, D) or a tuple of such."""


class CellTransition(ABC):
    """A deterministic move: state_t = forward(fed, state_{t-1}), where y enters through `feed` and `absorb`.

    `moves_to_simplex` says that the state is a distribution over K states after a move, `simplex` that it is one once
    y is known.
    """

    autoregressive: ClassVar[bool] = True
    simplex: bool
    moves_to_simplex: bool

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone."""

    @abstractmethod
    def feed(self, y: Tensor, u: Tree, constants: Tree) -> Tree:
        """What y_t leaves behind for the next move, for all t at once: (T, B, ...)."""

    @abstractmethod
    def absorb(self, state: Tree, fed: Tree) -> Tree:
        """The state once y_t is known."""

    @abstractmethod
    def step(self, fed: Tree, state: Tree, constants: Tree) -> Tree:
        """The next state."""

    @abstractmethod
    def missing(self, prediction: Distribution, constants: Tree) -> Tree:
        """What to feed when y is missing, from the model's own prediction of it: (B, ...)."""


class CellEmission(ABC):
    """p(y_t | state_t), scored for all t at once."""

    event: Event

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone."""

    @abstractmethod
    def log_prob(self, state: Tensor, y: Tensor, constants: Tree) -> Tensor:
        """Log p(y | state): (..., D) and (...) to (...)."""

    @abstractmethod
    def predict(self, state: Tensor, constants: Tree) -> Distribution:
        """The distribution of y."""


def seeded(seed: int | None) -> Any:
    """A context in which `seed` makes every draw repeatable and leaves the global generator as it was."""
    return _Seeded(seed)


class _Seeded:
    def __init__(self, seed: int | None):
        self.seed = seed

    def __enter__(self) -> None:
        if self.seed is not None:
            devices = list(range(torch.cuda.device_count()))
            self.fork = torch.random.fork_rng(devices=devices)
            self.fork.__enter__()
            if torch.accelerator.is_available():
                torch.manual_seed(self.seed)
            else:  # torch.manual_seed would note where it was called, for the devices that are not there: 0.4 ms
                torch.default_generator.manual_seed(int(self.seed))

    def __exit__(self, *exc: Any) -> None:
        if self.seed is not None:
            self.fork.__exit__(*exc)
