"""What the verbs return."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from statespan.errors import StatespanError
from statespan.sequences import Layout


class Posterior(NamedTuple):
    """What is known of the hidden states of some sequences.

    Args:
        values: what the belief says, in the question's form: `probs` (N, T, K); or `mean` (N, T, D) and `covariance`
            (N, T, D, D); or `samples` and `weights`; or `state`. Each is an attribute too.
        log_prob: (N,) natural log-probability of the observed entries.
        exact: whether the answer is exact.
        layout: how the question was put.
        steps: (N, T) log p(y_t | y_<t) of every step, zero where nothing is observed; in the question's form.
        belief: the belief at each sequence's own end, to carry on from; None for a smoothed posterior.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Gaussian(dim=1), seed=0)
        >>> posterior = model.smooth([0.1, float("nan"), 2.0])
        >>> posterior.probs.shape, posterior.log_prob.shape, posterior.exact
        (torch.Size([3, 2]), torch.Size([]), True)
    """

    values: Mapping[str, Any]
    log_prob: Tensor
    exact: bool
    layout: Layout
    steps: Any
    belief: Any = None

    def __repr__(self) -> str:
        """What there is, not its numbers."""
        of = "1 sequence" if self.layout.single else f"{len(self.layout.lengths)} sequences"
        steps = f"{sum(self.layout.lengths)} steps"
        return f"Posterior({', '.join(self.values)} of {of}, {steps}; log_prob {float(self.log_prob.sum()):.6g})"

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise AttributeError(f"this posterior has no {name}; it has {', '.join(self.values)}")
        return self.values[name]

    @property
    def probs(self) -> Any:
        """State probabilities, (N, T, K)."""
        return self._value("probs")

    @property
    def marginals(self) -> Any:
        """State probabilities of each of several chains, (N, T, C, K); zero past a chain's own states."""
        return self._value("marginals")

    @property
    def states(self) -> Any:
        """The most probable state of each step by itself, (N, T); the likeliest path is `model.decode`."""
        probs = self.probs
        return [row.argmax(-1) for row in probs] if isinstance(probs, list) else probs.argmax(-1)

    @property
    def pairs(self) -> Any:
        """Neighbouring states, where they were asked for: p(z_t = i, z_{t+1} = j | y), (N, T - 1, K, K).

        Of a normal state the covariance of z_t and z_{t+1}, (N, T - 1, D, D).
        """
        return self._value("pairs")

    @property
    def surprise(self) -> Any:
        """Minus log p(y_t | y_<t) of every step in nats, (N, T): large where an observation was not expected."""
        return [-row for row in self.steps] if isinstance(self.steps, list) else -self.steps

    @property
    def mean(self) -> Any:
        """State means, (N, T, D)."""
        return self._value("mean")

    @property
    def covariance(self) -> Any:
        """State covariances, (N, T, D, D)."""
        return self._value("covariance")

    @property
    def samples(self) -> Any:
        """Particles, (N, T, P, D)."""
        return self._value("samples")

    @property
    def weights(self) -> Any:
        """Weights of the particles, (N, T, P)."""
        return self._value("weights")

    @property
    def state(self) -> Any:
        """A recurrent network's state, (N, T, D)."""
        return self._value("state")

    def frame(self) -> dict[str, Any]:
        """Columns for a data frame, a row a step: sequence, step, and a column a state (of each chain) or dimension.

        The result is a dictionary of equal-length lists; `pandas.DataFrame(posterior.frame())` makes it a frame. If the
        question was put in pandas, its index stands beside the step, by its name or as `index`.
        """
        name = next((n for n in ("probs", "mean", "state", "marginals") if n in self.values), None)
        if name is None:
            raise StatespanError(f"no frame for a posterior of {', '.join(self.values)}; read those")
        each = [self.values[name]] if self.layout.single else self.values[name]
        ends = self.layout.lengths
        flat = torch.cat([row[:end].detach() for row, end in zip(each, ends, strict=True)])
        columns = {
            "sequence": [i for i, end in enumerate(ends) for _ in range(end)],
            "step": [t for end in ends for t in range(end)],
        }
        columns |= _index(self.layout.labels)
        places = itertools.product(*map(range, flat.shape[1:]))
        return columns | {"_".join([name, *map(str, k)]): flat[:, *k].tolist() for k in places}

    def plot(self, sequence: int = 0, axes: Any = None, **options: Any) -> Any:
        """Draw one sequence's states over time; returns the matplotlib axes.

        Args:
            sequence: which one.
            axes: matplotlib axes to draw on; None makes new ones.
            options: of `plot_posterior`: y= puts the series above, times= dates below (the index, if the question was
                put in pandas), columns=, words=.
        """
        from statespan.plots import plot_posterior

        return plot_posterior(self, sequence, axes, **_captions(self.layout, sequence) | options)


def _index(labels: Sequence[Any]) -> dict[str, list[Any]]:
    """The indexes of pandas, one a sequence, as columns; one that only counts the steps is left out."""
    if not labels or all(x.nlevels == 1 and x.dtype.kind in "iu" and (x == np.arange(len(x))).all() for x in labels):
        return {}
    names = [name or ("index" if labels[0].nlevels == 1 else f"index_{i}") for i, name in enumerate(labels[0].names)]
    return {
        str(name): [value for each in labels for value in each.get_level_values(i).tolist()]
        for i, name in enumerate(names)
    }


def _captions(layout: Layout, sequence: int) -> dict[str, Any]:
    """What a picture is told of a question that was put in pandas."""
    told: dict[str, Any] = {"columns": layout.columns} if layout.columns else {}
    if layout.labels and layout.labels[sequence].nlevels == 1 and layout.labels[sequence].inferred_type != "string":
        told["times"] = layout.labels[sequence]
    return told


class Forecast(NamedTuple):
    """What comes next.

    Args:
        distribution: of y at each step ahead, batch shape (N, steps); exact unless `exact` is False.
        draws: (S, N, steps, ...) sampled futures; `samples` gives them in the question's form.
        layout: how the question was put.
        exact: whether `distribution` is exact; otherwise it is a mixture over the samples' states.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Gaussian(dim=1), seed=0)
        >>> ahead = model.forecast([0.1, 2.0], steps=3)
        >>> ahead.mean.shape, ahead.quantile([0.1, 0.9]).shape, ahead.exact
        (torch.Size([3, 1]), torch.Size([2, 3, 1]), True)
    """

    distribution: Distribution
    draws: Tensor
    layout: Layout
    exact: bool

    def __repr__(self) -> str:
        """What there is, not its numbers."""
        of = "" if self.layout.single else f" of {self.draws.shape[1]} sequences"
        what = "probs" if isinstance(self.distribution, Categorical) else "mean, quantile(q)"
        return f"Forecast({self.draws.shape[2]} steps{of}: {what}, {len(self.draws)} samples)"

    def _answer(self, x: Tensor) -> Tensor:
        x = x.detach()  # an emission's own parameters may be among what it answers with
        return x[0] if self.layout.single else x

    @property
    def mean(self) -> Tensor:
        """Mean of y, (N, steps, D); for symbols ask `probs`."""
        if isinstance(self.distribution, Categorical):
            raise AttributeError("symbols have no mean; ask .probs")
        return self._answer(self.distribution.mean)

    @property
    def probs(self) -> Tensor:
        """Probability of each symbol, (N, steps, V)."""
        if not isinstance(self.distribution, Categorical):
            raise AttributeError("this forecast is of real values; ask .mean, .quantile(q) or .samples")
        return self._answer(self.distribution.probs)

    @property
    def samples(self) -> Tensor:
        """Sampled futures, (S, N, steps, ...)."""
        return self.draws[:, 0] if self.layout.single else self.draws

    def quantile(self, q: float | list[float]) -> Tensor:
        """Quantiles of each coordinate, by formula where the distribution has one, else from the samples.

        Args:
            q: a probability, or several.

        Returns:
            (..., N, steps, D), with the probabilities in front.

        Raises:
            StatespanError: a level that is no probability.
        """
        levels = torch.as_tensor(q, dtype=torch.float64)
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            raise StatespanError(f"quantile({q}): give probabilities between 0 and 1, such as 0.9")
        formula = getattr(self.distribution, "quantile", None)
        if formula is None:
            # torch's own takes no more than 2^24 numbers.
            drawn = np.quantile(self.samples.double().cpu().numpy(), levels.numpy(), axis=0)
            return torch.as_tensor(drawn, device=self.draws.device)
        value = formula(levels).detach()
        return value[..., 0, :, :] if self.layout.single else value

    def frame(self, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> dict[str, Any]:
        """Columns for a data frame, a row a step ahead: sequence, step, and what is expected.

        Of symbols `probs_0` and so on; else of each coordinate its mean and quantiles, `mean` and `q5`, with its number
        or, of a frame of pandas, its name. An index of pandas goes on in its own steps.

        Args:
            quantiles: probabilities between 0 and 1.

        Returns:
            A dictionary of equal-length lists, for `pandas.DataFrame`.

        Raises:
            StatespanError: a probability outside 0..1.

        Example:
            >>> import statespan as ss
            >>> ahead = ss.level(variance=1.0).forecast([0.1, 2.0], steps=3)
            >>> list(ahead.frame([0.1, 0.9])), ahead.frame()["step"]
            (['sequence', 'step', 'mean', 'q10', 'q90'], [2, 3, 4])
        """
        count, steps = self.draws.shape[1:3]
        ends = self.layout.lengths
        columns: dict[str, Any] = {
            "sequence": [i for i in range(count) for _ in range(steps)],
            "step": [end + t for end in ends for t in range(steps)],
        }
        columns |= _index([x for x in (_after(label, steps) for label in self.layout.labels) if x is not None])
        if isinstance(self.distribution, Categorical):
            probs = self.probs.reshape(count * steps, -1)
            return columns | {f"probs_{v}": column.tolist() for v, column in enumerate(probs.T)}
        mean = self.mean.reshape(count * steps, -1)
        levels = self.quantile(list(quantiles)).reshape(len(quantiles), count * steps, -1)
        for d in range(mean.shape[1]):
            own = f"_{d}" if mean.shape[1] > 1 else ""
            name = (
                (lambda x, d=d: f"{self.layout.columns[d]}_{x}")
                if self.layout.columns
                else (lambda x, own=own: x + own)
            )
            columns[name("mean")] = mean[:, d].tolist()
            columns |= {name(f"q{100 * q:g}"): levels[i, :, d].tolist() for i, q in enumerate(quantiles)}
        return columns

    def plot(self, sequence: int = 0, axes: Any = None, **options: Any) -> Any:
        """Draw the forecast as a fan (or, for symbols, as probabilities); returns the matplotlib axes.

        Args:
            sequence: which one.
            axes: matplotlib axes to draw on; None makes new ones.
            options: of `plot_forecast`: y= puts the series before it, times= and ahead= dates below, names=, columns=.
        """
        from statespan.plots import plot_forecast

        told = _captions(self.layout, sequence)
        ahead = _after(told["times"], self.draws.shape[2]) if "times" in told else None
        told = told | {"ahead": ahead} if ahead is not None else {}
        return plot_forecast(self, sequence, axes, **told | options)


def _after(index: Any, steps: int) -> Any:
    """The index of pandas that goes on after this one; None where it is neither dates nor numbers, or has one entry."""
    from statespan.tables.calendar import frequency

    if index.nlevels > 1 or index.dtype.kind not in "Miuf":
        return None
    calendar = frequency([index])
    return None if calendar is None else calendar.after(index[-1], steps).rename(index.name)
