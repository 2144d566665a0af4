"""Dynamic factor models."""

from typing import Any

import torch
from torch import nn

from statespan.errors import StatespanError
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.dynamic_factor import FactorMove, FactorStart, Loadings, LoadingsAndErrors


def dynamic_factor(
    observed: int,
    factors: int = 1,
    order: int = 1,
    autoregressive_errors: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""Many series that move with a few factors: y_t = mean + Lambda f_t + e_t, f_t = sum of Phi_j f_{t-j} + N(0, I).

    The errors e are independent, of one series each: white, or with `autoregressive_errors` e_it = rho_i e_i,t-1 and
    noise. The factors start from the distribution that they keep. Gaps, columns that begin later, and series of unlike
    frequency (quarters among months, NaN between) are left out of the likelihood and of the M-step exactly.

    `model.smooth(y).mean[..., :factors]` are the factors; of several only their span is told by the data, of one its
    sign is not. `model.emission.loadings` (E, q), `.mean`, `.variance`; `model.transition.coefficients` (q, q p).
    `model.fit(y, by=ss.EM(), restarts=2)`: from where the parameters are, and from principal components;
    `hold=["emission.mean"]` keeps the mean at zero, for series that are centred.

    Args:
        observed: E, how many series.
        factors: q, how many factors.
        order: p, how many past factors the next one depends on.
        autoregressive_errors: whether each error depends on its last one; `ss.LBFGS()` fits this sooner than EM.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes below one.

    Source:
        Stock and Watson 1989; Banbura and Modugno, Journal of Applied Econometrics 29, 2014; Durbin and Koopman 2012,
        section 3.7.

    Example:
        >>> import torch
        >>> import statespan as ss
        >>> y = ss.dynamic_factor(observed=4, seed=1).sample(length=50, seed=0)[1]
        >>> y[:10, 3] = torch.nan  # it begins later
        >>> model = ss.dynamic_factor(observed=4, seed=0).fit(y, by=ss.EM(iterations=5))
        >>> model.smooth(y).mean[:, :1].shape, model.forecast(y, steps=3).mean.shape
        (torch.Size([50, 1]), torch.Size([3, 4]))
    """
    if min(observed, factors, order) < 1:
        raise StatespanError(f"dynamic_factor(observed={observed}, factors={factors}, order={order}): use at least 1")
    with seeded(seed):
        move = FactorMove(factors, order, observed if autoregressive_errors else 0)
        shown: type[Any] = LoadingsAndErrors if autoregressive_errors else Loadings
        emission: nn.Module = shown(move.event.dim, observed, factors)
    return StateSpace(FactorStart(move), move, emission).to(device=device, dtype=dtype or torch.float64)
