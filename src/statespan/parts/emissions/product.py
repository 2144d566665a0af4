"""Mixed columns: several emissions side by side."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part, permute
from statespan.parts.emissions.common import first_weights
from statespan.sequences import Event, Support, any_of
from statespan.shapes import Float
from statespan.tree import Tree


class ProductEmission(Part, FiniteEmission, Generative):
    r"""A table of mixed columns: p(y | z = k) = product over the emissions of p(its columns | z = k).

    The first emission has the first columns, and so on; symbols take one column of codes 0, 1, 2, ... Whatever is NaN
    is missing by itself, column by column where the emission can marginalise.

    Args:
        emissions: any of the finite emissions that look at no past.

    Raises:
        StatespanError: no emission, or numbers of states that differ.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, section 9.4 (conditional
        independence given the state).

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Product(ss.Categorical(3), ss.Gaussian(dim=2)), seed=0)
        >>> model.log_prob([[0, 1.5, -0.2], [2, float("nan"), 0.3], [float("nan"), 1.0, 1.0]]).shape
        torch.Size([])
    """

    def __init__(self, *emissions: Any):
        super().__init__()
        if not emissions:
            raise StatespanError("Product needs emissions, such as ss.Product(ss.Categorical(3), ss.Gaussian(dim=2))")
        sizes = {e.states for e in emissions}
        if len(sizes) > 1:
            raise StatespanError(
                f"Product: the number of states differs: {', '.join(str(e.states) for e in emissions)}"
            )
        if any(e.lags for e in emissions):
            raise StatespanError("Product: an emission that looks back on past observations cannot be one of several")
        self.emissions = nn.ModuleList(emissions)
        self.states = sizes.pop()
        widths = [e.event.dim if e.event.rank else 1 for e in emissions]
        ends = torch.tensor(widths).cumsum(0).tolist()
        self.columns = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        what = "; ".join(
            f"columns {c.start}-{c.stop - 1}: {_what(e)}" for c, e in zip(self.columns, emissions, strict=True)
        )
        self.event = Event(1, None, ends[-1], Support(self._wrong, what))

    def sized(self, states: int) -> "ProductEmission":
        """The same emissions for K states, if they have none yet."""
        return self if self.states is not None else ProductEmission(*[e.sized(states) for e in self._parts])

    @property
    def takes_inputs(self) -> bool:
        """Whether one of them does."""
        return any(e.takes_inputs for e in self._parts)

    def _wrong(self, x: Tensor, there: Tensor) -> Tensor:
        """What each emission says of its own columns."""
        out = torch.zeros_like(there)
        for e, at in zip(self._parts, self.columns, strict=True):
            event: Any = e.event
            part, seen = x[:, at], there[:, at]
            if event.symbols is not None:
                out[:, at] = seen & ((part != part.round()) | (part < 0) | (part >= event.symbols))
            elif event.support is not None:
                out[:, at] = event.support.wrong(part, seen)
        return out

    def _each(self, y: Tensor, observed: Tensor | None) -> list[tuple[Any, Tensor, Tensor | None, Tensor | None]]:
        """Each emission with its columns, what of them is there, and which steps have any of them."""
        out = []
        for e, at in zip(self._parts, self.columns, strict=True):
            event: Any = e.event
            part, seen = y[..., at], observed
            if observed is not None and observed.dim() == y.dim():
                seen = observed[..., at]
                whole = event.rank == 0 or bool((seen.all(-1) == seen.any(-1)).all())
                seen = seen.all(-1) if whole else seen
            if event.rank == 0:
                part = part[..., 0].long() if event.symbols is not None else part[..., 0]
            some = None if seen is None else any_of(seen)
            out.append((e, part, seen, some))
        return out

    def constants(self) -> tuple:
        """Each emission's."""
        return tuple(e.constants() for e in self._parts)

    @property
    def _parts(self) -> list[Any]:
        return list(self.emissions)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple
    ) -> Float[Tensor, "T B K"]:
        """The sum of the emissions', each where its own columns are there."""
        out = None
        for (e, part, seen, some), each in zip(self._each(y, observed), constants, strict=True):
            log = e.log_likelihood(part, u, seen, each)
            log = log if some is None else torch.where(some[..., None], log, 0.0)
            out = log if out is None else out + log
        assert out is not None
        return out

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return Columns([e.forward(z, u) for e in self._parts], [e.event.rank for e in self._parts])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """Each emission's mean, for symbols the mode."""
        filled = [e.fill(part, u, seen, weights).to(y.dtype) for e, part, seen, _ in self._each(y, observed)]
        return torch.cat([x[..., None] if x.dim() == y.dim() - 1 else x for x in filled], -1)

    def permute(self, order: Tensor) -> None:
        """Each emission's."""
        for e in self._parts:
            permute(e, order)

    def log_prior(self) -> Any:
        """The sum of the emissions'."""
        return sum(e.log_prior() for e in self._parts)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> tuple:
        """Each emission's."""
        for e in self._parts:
            if not hasattr(e, "maximize"):
                raise StatespanError(f"{type(e).__name__} has no closed M-step; fit this Product by ss.SGD()")
        return tuple(
            e.statistics(part, u, weights if some is None else torch.where(some[..., None], weights, 0.0), seen)
            for e, part, seen, some in self._each(y, observed)
        )

    @torch.no_grad()
    def maximize(self, stats: tuple) -> None:
        """Each emission's."""
        for e, sums in zip(self._parts, stats, strict=True):
            e.maximize(sums)

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """The M-step of every emission for states at rows far apart (k-means++), columns scaled alike."""
        weights = first_weights(y, observed, self.states or 1)
        self.maximize(self.statistics(y, u, weights, observed))


def _what(emission: Any) -> str:
    event = emission.event
    if event.symbols is not None:
        return f"symbols 0..{event.symbols - 1}"
    return "any numbers" if event.support is None else event.support.what


class Columns(Distribution):
    """Independent distributions side by side, symbols as codes: event (D,)."""

    def __init__(self, each: list[Distribution], ranks: list[int]):
        super().__init__(each[0].batch_shape, validate_args=False)
        self.each, self.ranks = each, ranks
        self.widths = [d.event_shape[0] if rank else 1 for d, rank in zip(each, ranks, strict=True)]
        self._event_shape = torch.Size([sum(self.widths)])

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """None."""
        return {}

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        """The same with another batch shape."""
        return Columns([d.expand(batch_shape) for d in self.each], self.ranks)

    def _joined(self, values: list[Tensor]) -> Tensor:
        columns = [x if rank else x[..., None] for x, rank in zip(values, self.ranks, strict=True)]
        real = next((x.dtype for x in columns if x.is_floating_point()), torch.float64)
        return torch.cat([x.to(real) for x in columns], -1)

    @property
    def mean(self) -> Tensor:
        """Means; of symbols the mean code."""
        return self._joined([_moments(d)[0] for d in self.each])

    @property
    def variance(self) -> Tensor:
        """Variances; of symbols that of the code."""
        return self._joined([_moments(d)[1] for d in self.each])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Each by itself."""
        return self._joined([d.sample(torch.Size(sample_shape)) for d in self.each])

    def log_prob(self, value: Tensor) -> Tensor:
        """The sum of all."""
        parts = value.split(self.widths, -1)
        logs = [
            d.log_prob(x if rank else x[..., 0].long() if _symbols(d) else x[..., 0])
            for d, x, rank in zip(self.each, parts, self.ranks, strict=True)
        ]
        return torch.stack(torch.broadcast_tensors(*logs)).sum(0)


def _symbols(d: Distribution) -> bool:
    return isinstance(d, torch.distributions.Categorical)


def _moments(d: Any) -> tuple[Tensor, Tensor]:
    if not _symbols(d):
        return d.mean, d.variance
    codes = torch.arange(d.probs.shape[-1], device=d.probs.device).to(d.probs)
    mean = d.probs @ codes
    return mean, d.probs @ codes.square() - mean.square()
