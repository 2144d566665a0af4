"""Any distribution of torch as an emission, fitted by gradient."""

from typing import Any

import torch
import torch.distributions as distributions
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints, transform_to

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part
from statespan.sequences import Event, Support
from statespan.shapes import Float
from statespan.tree import Tree


class Emission(Part, FiniteEmission, Generative):
    r"""Any distribution of `torch.distributions` by its name, each parameter free within its constraint.

    A distribution of numbers stands for each coordinate, independent given the state, with parameters (K, D); a missing
    coordinate is left out. One of vectors (Dirichlet) has them (K, D) too, and whole rows are there or missing. What is
    kept are unconstrained numbers x, with parameter = transform_to(constraint)(x). There is no closed M-step: `ss.SGD`
    fits, and in `ss.EM` it takes gradient steps.

    Args:
        name: such as "Gumbel", "Weibull", "Laplace", "Dirichlet", "HalfCauchy".
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        parameters: (K, D) by torch's names, instead of the sizes.

    Raises:
        StatespanError: no such distribution, or one whose parameters are not numbers or vectors.

    Source:
        torch.distributions: `arg_constraints`, `constraint_registry`.

    Example:
        >>> Emission("Gumbel", loc=[[0.0], [3.0]], scale=[[1.0], [2.0]]).parameter("scale").flatten().tolist()
        [1.0, 2.0]
    """

    def __init__(self, name: str, dim: int = 1, states: int | None = None, **parameters: Any):
        super().__init__()
        self.name, self.constraints = name, _constraints(name)
        given = {key: torch.as_tensor(value, dtype=torch.float64) for key, value in parameters.items()}
        if given and given.keys() != self.constraints.keys():
            raise StatespanError(
                f"Emission({name}) has parameters {', '.join(self.constraints)}; give all, or the sizes"
            )
        for key, value in given.items():
            if value.dim() != 2 or not bool(self.constraints[key].check(value).all()):
                raise StatespanError(
                    f"Emission({name}): {key} is {tuple(value.shape)}; give (K, D) of {self.constraints[key]}"
                )
            states, dim = value.shape
        self.dim, self.states = dim, states
        self.remember(dim=dim, states=states, parameters={})
        self.event = Event(1, None, dim, Support(self._wrong, f"what {name} can give"))
        if states is not None:
            self.free = nn.ParameterDict()
            for key, constraint in self.constraints.items():
                start = torch.randn(states, dim) / 2
                if given:
                    start = transform_to(constraint).inv(given[key])
                self.free[key] = nn.Parameter(start)

    def parameter(self, key: str) -> Tensor:
        """One of the distribution's parameters, (K, D).

        Args:
            key: torch's name of it.
        """
        return transform_to(self.constraints[key])(self.free[key])

    def constants(self) -> dict[str, Tensor]:
        """The parameters."""
        return {key: self.parameter(key) for key in self.constraints}

    def _law(self, parameters: dict[str, Tensor]) -> Distribution:
        """Distributions of y, from parameters (..., D)."""
        each = getattr(distributions, self.name)(**parameters, validate_args=False)
        return each if each.event_shape else Independent(each, 1, validate_args=False)

    def _numbers(self) -> bool:
        """Whether the distribution is of numbers rather than vectors."""
        return all(c.event_dim == 0 for c in self.constraints.values())

    def _wrong(self, x: Tensor, there: Tensor) -> Tensor:
        """What lies outside the support; for vectors a row that is partly missing, too."""
        inner: Any = self._law({k: transform_to(c)(x.new_zeros(1, self.dim))[0] for k, c in self.constraints.items()})
        inner = inner.base_dist if isinstance(inner, Independent) else inner
        try:
            inside = inner.support.check(x)
        except NotImplementedError:  # a support that depends on the parameters
            return torch.zeros_like(there)
        if self._numbers():
            return there & ~inside
        whole, some = there.all(-1), there.any(-1)
        return ((whole & ~inside) | (some & ~whole))[:, None] & there

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: dict[str, Tensor]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, over the coordinates that are there."""
        law: Any = self._law(constants)
        there = None
        if observed is not None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():  # any value that can be
                there = None if observed.dim() == 2 else observed
                y = torch.where(observed if there is not None else observed[..., None], y, law.sample()[0])
        rows = y[..., None, :]
        if there is None or not isinstance(law, Independent):
            return law.log_prob(rows)
        each: Any = law.base_dist
        return (each.log_prob(rows) * there[..., None, :]).sum(-1)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return self._law({key: value[z] for key, value in self.constants().items()})

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean; where a distribution has none, the middle of many draws."""
        law = self._law(self.constants())
        try:
            mean = law.mean
        except NotImplementedError:
            mean = torch.full_like(weights[0, 0, :, None], torch.nan)
        if not bool(mean.isfinite().all()):
            mean = law.sample(torch.Size([1001])).median(0).values
        return weights @ mean.to(weights)


def _constraints(name: str) -> dict[str, Any]:
    """Parameters and their constraints; of probabilities and logits the logits."""
    cls = getattr(distributions, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Distribution)):
        raise StatespanError(f'Emission("{name}"): torch.distributions has no such distribution; "Gumbel" is one')
    found = getattr(cls, "arg_constraints", None)
    found = dict(found) if isinstance(found, dict) else {}
    if "logits" in found:
        found.pop("probs", None)
    fits = [isinstance(c, constraints.Constraint) and not c.is_discrete and c.event_dim <= 1 for c in found.values()]
    if not found or not all(fits) or len({c.event_dim for c in found.values()}) > 1:
        raise StatespanError(
            f"Emission({name}): its parameters are not all numbers, or all vectors; use ss.Gaussian, "
            "ss.FactorGaussian, ss.StudentT, ss.Multinomial or ss.Categorical"
        )
    return found
