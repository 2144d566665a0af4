"""Regressions of which some coefficients, and the variance if it is to, switch with the regime."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Part, mixed
from statespan.parts.emissions.common import first_weights, known
from statespan.parts.emissions.regression import past_of
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree

SWITCHES = ("intercept", "inputs", "lags", "variance")


class SwitchingRegression(Part, FiniteEmission):
    r"""A series that follows inputs and its own past, with coefficients of which some switch with the regime.

    In the intercept form y_t = m_t(s_t) + sum over j of phi_j(s_t) y_{t-j} + sigma(s_t) e_t, with
    m_t(k) = W_k u_t + b_k. In the mean-adjusted form a regime shifts the mean at once, and not by and by:
    y_t = m_t(s_t) + sum over j of phi_j(s_t) (y_{t-j} - m_{t-j}(s_{t-j})) + sigma(s_t) e_t. It then tells the regimes
    of the last p steps apart, K^(p+1) states (`parts.memory.Remembering`). The first p steps of a series are given.

    The M-step is conditional: least squares for the coefficients of the mean, then for phi, then the variances, each
    in closed form with ties. It never lowers the expected log-likelihood.

    Args:
        inputs: U, 0 for none. In the mean-adjusted form a step's row holds the inputs of the steps back too,
            (U (p + 1)): `ss.lagged(u, p)`.
        lags: p, 0 for none.
        states: K; None leaves it to the model.
        switching: what differs between regimes, of "intercept", "inputs", "lags" and "variance"; a number stands for
            that input alone.
        adjusted: the mean-adjusted form.
        floor: the least variance that the M-step gives.
        beside: how many inputs that are not its own stand after its own.

    Raises:
        StatespanError: an unknown name in `switching`, a size below zero.

    Source:
        Hamilton, "A new approach to the economic analysis of nonstationary time series", Econometrica 57, 1989,
        equation 4.1; Hamilton, Time Series Analysis 1994, chapter 22; Kim and Nelson, State-Space Models with Regime
        Switching 1999, chapter 4; the M-step: Meng and Rubin, "Maximum likelihood estimation via the ECM algorithm",
        Biometrika 80, 1993.

    Example:
        >>> part = SwitchingRegression(lags=4, states=2, switching=["intercept"], adjusted=True)
        >>> part.coefficients.shape, part.autoregression.shape, part.variance.shape
        (torch.Size([2, 1]), torch.Size([2, 4]), torch.Size([2]))
    """

    which_mean: Tensor
    which_lag: Tensor
    which_variance: Tensor
    regimes: Tensor

    class Stats(NamedTuple):
        """Of each state the weight (S,), and sums of r r (S,), r v (S, V) and v v' (S, V, V).

        v = (y_t, the past, the regressors), r = c v with c what it is now.
        """

        weight: Tensor
        square: Tensor
        cross: Tensor
        design: Tensor

    def __init__(
        self,
        inputs: int = 0,
        lags: int = 0,
        states: int | None = None,
        switching: Sequence[Any] = SWITCHES,
        adjusted: bool = False,
        floor: float = 1e-6,
        beside: int = 0,
    ):
        super().__init__()
        if inputs < 0 or lags < 0:
            raise StatespanError(f"SwitchingRegression(inputs={inputs}, lags={lags}): use 0 or more")
        chosen = [switching] if isinstance(switching, (str, int)) else list(switching)
        for name in chosen:
            if name not in SWITCHES and not (isinstance(name, int) and 0 <= name < inputs):
                raise StatespanError(
                    f"switching has {name!r}; choose of {', '.join(SWITCHES)}, or an input's number in 0..{inputs - 1}"
                )
        self.inputs, self.lags, self.states, self.switching = inputs, lags, states, chosen
        self.adjusted, self.floor, self.beside = adjusted, floor, beside
        self.expanded = adjusted and lags > 0
        self.event = Event(1, None, 1)
        if states is None:
            return
        differs = ["inputs" in chosen or i in chosen for i in range(inputs)] + ["intercept" in chosen]
        for name, columns in (
            ("mean", differs),
            ("lag", ["lags" in chosen] * lags),
            ("variance", ["variance" in chosen]),
        ):
            self.register_buffer(f"which_{name}", _labels(states, columns), persistent=False)
        memory = lags if self.expanded else 0
        # (1 + memory, S): of each state the regimes s_t, s_{t-1}, ...
        digits = torch.arange(states ** (memory + 1)) // states ** torch.arange(memory + 1)[:, None] % states
        self.register_buffer("regimes", digits, persistent=False)
        self.mean = nn.Parameter(torch.randn(_count(self.which_mean)))
        self.lag = nn.Parameter(torch.zeros(_count(self.which_lag)))
        self.log_variance = nn.Parameter(torch.zeros(_count(self.which_variance)))

    @property
    def coefficients(self) -> Tensor:
        """W and b of the regimes side by side, (K, U + 1)."""
        return self.mean[self.which_mean]

    @property
    def autoregression(self) -> Tensor:
        """phi, (K, p), of the latest first."""
        return self.lag[self.which_lag]

    @property
    def variance(self) -> Tensor:
        """sigma^2, (K,)."""
        return self.log_variance[self.which_variance[:, 0]].exp()

    @torch.no_grad()
    def set_values(self, coefficients: Any = None, autoregression: Any = None, variance: Any = None) -> None:
        """Make these the parameters; what does not switch takes the mean over regimes.

        Args:
            coefficients: (K, U + 1), W and then b; (K,) where there are no inputs.
            autoregression: (K, p), or (p,) for all regimes.
            variance: (K,), or a number for all.

        Raises:
            StatespanError: a variance that is not positive.
        """
        if coefficients is not None:
            _set(
                self.mean,
                self.which_mean,
                torch.as_tensor(coefficients, dtype=torch.float64).reshape(self.which_mean.shape),
            )
        if autoregression is not None:
            _set(self.lag, self.which_lag, torch.as_tensor(autoregression, dtype=torch.float64))
        if variance is not None:
            value = torch.as_tensor(variance, dtype=torch.float64).reshape(-1, 1)
            if not bool((value > 0).all()):
                raise StatespanError(f"set_values(variance=): it must be positive, and is {value.flatten().tolist()}")
            _set(self.log_variance, self.which_variance, value.log())

    def permute(self, order: Tensor) -> None:
        """Regime k becomes what `order[k]` was."""
        self.set_values(self.coefficients[order], self.autoregression[order], self.variance[order])

    def constants(self) -> tuple[Tensor, Tensor]:
        """c, (S, V), and the variances of the states, (S,)."""
        return self._contrast(self.mean, self.lag), self.variance[self.regimes[0]]

    def _contrast(self, mean: Tensor, lag: Tensor) -> Tensor:
        """What the residual is made of: r = c v with v = (y_t, the past, the regressors)."""
        now, phi = mean[self.which_mean], lag[self.which_lag][self.regimes[0]]  # (K, F), (S, p)
        parts = [phi.new_ones(len(phi), 1), -phi, -now[self.regimes[0]]]
        if self.expanded:
            back = now[self.regimes[1:]]  # (p, S, F)
            parts.append((phi.T[..., None] * back).transpose(0, 1).flatten(1))
        return torch.cat(parts, 1)

    def _regressors(self, u: Tree, like: Tensor) -> Tensor:
        """The past and the regressors, (..., V - 1); `like` is (..., 1)."""
        given, past = u if self.lags else (u, None)
        blocks = 1 + (self.lags if self.expanded else 0)
        own, width = self.inputs * blocks, 0 if given is None else given.shape[-1]
        if width != own + self.beside:
            beside = f" and {self.beside} beside them" if self.beside else ""
            back = ", those of the steps before beside each (ss.lagged)" if self.inputs and blocks > 1 else ""
            raise StatespanError(
                f"this regression takes {own} inputs a step{beside}, and {width} are given; give inputs= with y, and "
                f"future= with a forecast{back}"
            )
        at = given if given is not None else like if past is None else past[..., 0, :]
        rows = like.new_ones(*at.shape[:-1], blocks, 1)
        if self.inputs:
            rows = torch.cat([at[..., :own].unflatten(-1, (blocks, self.inputs)), rows], -1)
        return torch.cat([*([] if past is None else [past.flatten(-2)]), rows.flatten(-2)], -1)

    def _means(self, rest: Tensor, contrast: Tensor) -> Tensor:
        """The states' means, (..., S)."""
        return -(rest @ contrast[:, 1:].T)

    def log_likelihood(
        self, y: Float[Tensor, "T B 1"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "T B S"]:
        """Log-densities."""
        contrast, variance = constants
        y = known(y, observed, 0.0)[0]
        rest = y - self._means(self._regressors(u, y), contrast)
        return -0.5 * (rest.square() / variance + variance.log() + math.log(2 * math.pi))

    def mixture(self, probs: Tensor, u: Tree, constants: tuple[Tensor, Tensor]) -> Distribution:
        """A mixture of the states' normals."""
        contrast, variance = constants
        mean = self._means(self._regressors(u, probs[..., :1]), contrast).expand(probs.shape)
        each = Normal(mean[..., None], variance.sqrt()[:, None].expand(*probs.shape, 1), validate_args=False)
        return mixed(probs, Independent(each, 1, validate_args=False))

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        means = self._means(self._regressors(u, known(y, observed, 0.0)[0]), self.constants()[0])
        return (weights * means).sum(-1, keepdim=True)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "SwitchingRegression.Stats":
        """Expected sums."""
        y, there = known(y, observed, 0.0)
        if observed is not None:
            weights = torch.where((observed if there is None else there.any(-1))[..., None], weights, 0.0)
        v = torch.cat([y, self._regressors(u, y)], -1).flatten(0, -2)
        w, rest = weights.flatten(0, -2), v @ self.constants()[0].T
        pairs = (v[:, :, None] * v[:, None]).flatten(1)
        design = (w.T @ pairs).unflatten(-1, (v.shape[-1], -1))
        return self.Stats(w.sum(0), (w * rest.square()).sum(0), (w * rest).T @ v, design)

    @torch.no_grad()
    def maximize(self, stats: "SwitchingRegression.Stats") -> None:
        """Least squares for the mean's coefficients, then for phi, then the variances of what is left."""
        before = self.constants()[0]
        for parameter, other in ((self.mean, self.lag), (self.lag, self.mean)):
            if not (parameter.requires_grad and parameter.numel()):
                continue
            now, variance = self.constants()
            first = parameter is self.mean

            def of(value: Tensor, first: bool = first, other: Tensor = other) -> Tensor:
                return self._contrast(value, other) if first else self._contrast(other, value)

            # The contrast is affine in each of the two, so that this is all of its slope, (P, S, V).
            units = torch.eye(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            slopes = torch.vmap(of)(units) - of(torch.zeros_like(parameter))
            slope = stats.cross + ((now - before)[:, None] @ stats.design)[:, 0]
            pull = torch.einsum("psv,sv->p", slopes, slope / variance[:, None])
            square = torch.einsum("psv,svw,qsw->pq", slopes, stats.design / variance[:, None, None], slopes)
            parameter.sub_(torch.linalg.pinv(square, hermitian=True, rtol=1e-12) @ pull)
        moved = self.constants()[0] - before
        left = stats.square + ((2 * stats.cross + (moved[:, None] @ stats.design)[:, 0]) * moved).sum(-1)
        label = self.which_variance[:, 0][self.regimes[0]]
        blank = torch.zeros_like(self.log_variance)
        weight, total = blank.index_add(0, label, stats.weight), blank.index_add(0, label, left)
        value = (total / weight.clamp_min(1e-300)).clamp_min(self.floor).log()
        self.log_variance.copy_(torch.where(weight > 0, value, self.log_variance))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: the M-step for regimes at rows far apart (k-means++)."""
        weights = first_weights(y, observed, len(self.which_mean))
        self.lag.zero_()
        if self.lags:
            u = (u, past_of(y, self.lags))
        if self.expanded:
            near = past_of(weights, self.lags)  # (T, B, p, K)
            each = [near[..., j, :][..., self.regimes[j + 1]] for j in range(self.lags)]
            weights = weights[..., self.regimes[0]] * torch.stack(each).prod(0)
        weights[: self.lags] = 0.0
        for _ in range(3):
            self.maximize(self.statistics(y, u, weights, observed))


def _labels(states: int, differs: list[bool]) -> Tensor:
    """(K, columns) integers: each column's entries are numbered where they switch, and share one number elsewhere."""
    rows, free = [], 0
    for switches in differs:
        rows.append([free + (k if switches else 0) for k in range(states)])
        free += states if switches else 1
    return torch.tensor(rows, dtype=torch.long).reshape(len(differs), states).T.contiguous()


def _count(labels: Tensor) -> int:
    return int(labels.max()) + 1 if labels.numel() else 0


def _set(parameter: Tensor, labels: Tensor, values: Tensor) -> None:
    """The mean of the values under each label."""
    values = values.to(parameter).expand(labels.shape).flatten()
    total, count = torch.zeros_like(parameter), torch.zeros_like(parameter)
    total.index_add_(0, labels.flatten(), values)
    count.index_add_(0, labels.flatten(), torch.ones_like(values))
    parameter.copy_(total / count)


def lagged(inputs: Any, lags: int) -> Tensor:
    """Inputs (..., T, U) with those of the steps before beside them, (..., T, U (lags + 1)): u_t, u_{t-1}, ...

    What the mean-adjusted form of `ss.markov_switching` takes. The first rows repeat the first input.

    Args:
        inputs: (T, U) or (N, T, U).
        lags: how many steps back.

    Example:
        >>> lagged([[1.0], [2.0], [3.0]], 1).tolist()
        [[1.0, 1.0], [2.0, 1.0], [3.0, 2.0]]
    """
    u = torch.as_tensor(inputs)
    index = torch.arange(u.shape[-2], device=u.device)
    return torch.cat([u[..., (index - j).clamp_min(0), :] for j in range(lags + 1)], -1)
