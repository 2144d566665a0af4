"""A switching linear model begun from the data: a path of states, and an autoregressive HMM of its moves."""

from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.families.subspace import subspace
from statespan.families.switching_linear import switching_linear
from statespan.fit import EM
from statespan.model import StateSpace
from statespan.parts.emissions.regression import LinearRegression

LEAST = 1e-3
"""The least share of the path's variance that the noise of a move begins with, and the least probability of a jump."""


def switching_subspace(
    y: Any,
    states: int,
    state: int,
    recurrent: bool = False,
    lags: int | None = None,
    lengths: Any = None,
    restarts: int = 4,
    seed: int = 0,
) -> StateSpace:
    r"""A switching linear model from the data, to `fit` on: for EM that starts at random regimes may never part.

    One linear Gaussian model is identified (`ss.subspace`), and its smoothed states z_t are taken to be known: an HMM
    whose regimes regress z_t on z_{t-1} then gives each regime's A, b and Q, and the table of jumps. C, d and R are
    those of the linear model. A recurrent model begins with jumps that do not look at z yet.

    Args:
        y: the sequences, as every verb takes them; gaps are smoothed over.
        states: K.
        state: D.
        recurrent: whether jumps may look at z, as in `ss.switching_linear`.
        lags: of the linear model's windows.
        lengths: (N,) lengths of a padded batch.
        restarts: starts of the HMM, the best is kept.
        seed: makes them repeatable.

    Raises:
        StatespanError: too few windows without a gap (see `ss.subspace`), or no regimes.

    Source:
        Linderman et al., AISTATS 2017, section 5 (the start of its sampler: an autoregressive HMM of principal
        components).

    Example:
        >>> import statespan as ss, torch
        >>> y = torch.cat([torch.arange(30.0), torch.arange(30.0, 0.0, -1)]) + 0.1 * torch.randn(60)
        >>> model = ss.switching_subspace(y, states=2, state=1)
        >>> model.transition.affine(None).matrix.shape
        torch.Size([2, 1, 1])
    """
    if states < 1:
        raise StatespanError(f"switching_subspace(states={states}): use at least 1")
    linear = subspace(y, state, lags, lengths)
    known = linear.smooth(y, lengths=lengths)
    rows = [known.mean] if known.layout.single else known.mean
    paths = [row[:n] for row, n in zip(rows, known.layout.lengths, strict=True) if n > 1]
    chain = hmm(states=states, emission=LinearRegression(dim=state, inputs=state), seed=seed)
    chain.fit(
        [z[1:] for z in paths], inputs=[z[:-1] for z in paths], by=EM(iterations=50), restarts=restarts, seed=seed
    )
    with torch.no_grad():
        table = chain.transition.probs.clamp_min(LEAST)
        table, spread = table / table.sum(-1, keepdim=True), torch.cat(paths).mT.cov().reshape(state, state)
        moves, seen = chain.emission.coefficients, linear.emission
        model = switching_linear(
            states,
            dynamics=moves[..., :state],
            state_offset=moves[..., state],
            state_noise=chain.emission.covariance + LEAST * spread,
            observation=seen.matrix,
            observation_offset=seen.offset,
            observation_noise=seen.scale @ seen.scale.mT,
            initial_mean=torch.stack([z[0] for z in paths]).mean(0),
            initial_covariance=spread,
            transition=None if recurrent else table,
            recurrent=recurrent,
        )
        if recurrent:
            model.transition.logits.copy_(table.log())
            model.transition.weight.zero_()
    return model
