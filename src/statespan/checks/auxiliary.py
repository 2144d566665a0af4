"""Auxiliary residuals: where a series has outliers, and where its level or another state breaks."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.method import lacks, prepare
from statespan.methods import Kalman
from statespan.parts.linear import apply
from statespan.verbs import ask

LEAST = 1e-9
"""A residual whose variance is a smaller share of the noise's than this is rounding."""


class Auxiliary(NamedTuple):
    """The noises of a series as they are known in hindsight, in units of their standard deviation.

    Args:
        names: of the columns: "noise" of each observed coordinate, then what each state's shock is of.
        values: (T, n) standard normal, if the model is true, but neighbours are correlated; a shock at step t is that
            of the move into t. NaN where nothing is observed, and for the first step's shocks.
    """

    names: tuple[str, ...]
    values: Tensor

    def outliers(self, threshold: float = 3.0) -> dict[str, list[Any]]:
        """Columns for a data frame: the residuals beyond a threshold, the largest first.

        Args:
            threshold: in standard deviations.
        """
        size = self.values.abs().nan_to_num(0.0)
        steps, columns = (size > threshold).nonzero().T
        order = size[steps, columns].argsort(descending=True)
        rows = list(zip(steps[order].tolist(), columns[order].tolist(), strict=True))
        values = [float(self.values[t, i]) for t, i in rows]
        return {"name": [self.names[i] for _, i in rows], "step": [t for t, _ in rows], "value": values}

    def plot(self, times: Any = None, threshold: float = 3.0) -> Any:
        """Draw a panel for each noise; returns the axes of the first.

        Args:
            times: of the steps, numbers or dates.
            threshold: what lies beyond it is marked.
        """
        from statespan.plots.checking import plot_auxiliary

        return plot_auxiliary(self, times, threshold)


def auxiliary(model: Any, y: Any, inputs: Any = None) -> Auxiliary:
    r"""The auxiliary residuals of one series under a linear Gaussian or structural model.

    With everything known, e_t = E[noise_t | y] has the variance R - Var(noise_t | y), and likewise a state's shock. A
    large one of the observation's noise is an outlier, a large one of the level's shock a break of level.

    Args:
        model: a linear Gaussian state space.
        y: one series, (T,) or (T, E).
        inputs: its inputs.

    Raises:
        StatespanError: another model, or several series.

    Source:
        Harvey and Koopman, "Diagnostic checking of unobserved-components time series models", Journal of Business and
        Economic Statistics 10, 1992; Durbin and Koopman 2012, sections 2.12.2 and 7.5.

    Example:
        >>> import statespan as ss
        >>> y = [0.1, -0.2, 0.3, 9.0, 0.2, -0.1, 0.1, 0.3]
        >>> model = ss.level(variance=0.01)
        >>> worst = ss.auxiliary(model, y).outliers()
        >>> worst["name"][0], worst["step"][0]
        ('noise', 3)
    """
    method = Kalman()
    if lacks(Kalman, model):
        raise StatespanError(f"auxiliary residuals are of linear Gaussian models; {lacks(Kalman, model)[0]}")
    data, layout = ask(model, y, inputs=inputs)
    if not layout.single:
        raise StatespanError("auxiliary takes one series; call it for each")
    with torch.no_grad():
        smoothed, _, pairs = method.hindsight(model, prepare(model, method, data), None, data, pairs=True)
        assert pairs is not None
        emission, move = model.emission.affine(data.u), model.transition.affine(data.u)
        mean, spread = smoothed.mean, smoothed.scale @ smoothed.scale.mT  # (T, 1, ...)
        noise = data.y - apply(emission.matrix, mean) - emission.offset
        seen = _standard(noise, emission.scale, emission.matrix @ spread @ emission.matrix.mT)
        if data.present is not None:
            there = data.present if data.present.dim() == 3 else data.present[..., None]
            seen = torch.where(there, seen, torch.nan)
        move = move._replace(**{n: x[1:] for n, x in move._asdict().items() if x.dim() > 2 - (n == "offset")})
        shock = mean[1:] - apply(move.matrix, mean[:-1]) - move.offset
        cross = move.matrix @ pairs
        known = spread[1:] + move.matrix @ spread[:-1] @ move.matrix.mT - cross - cross.mT
        moved = _standard(shock, move.scale, known)
        moved = torch.cat([moved.new_full((1, *moved.shape[1:]), torch.nan), moved])
    values = torch.cat([seen, moved], -1)[:, 0]
    names = _names(model, seen.shape[-1], moved.shape[-1])
    kept = [i for i in range(len(names)) if not bool(values[:, i].isnan().all())]
    return Auxiliary(tuple(names[i] for i in kept), values[:, kept])


def _standard(residual: Tensor, scale: Tensor, known: Tensor) -> Tensor:
    """Over its standard deviation; NaN where there is no noise, or nothing is learnt of it."""
    noise = scale.square().sum(-1)
    variance = noise - known.diagonal(dim1=-2, dim2=-1)
    return torch.where(
        (noise > 0) & (variance > LEAST * noise), residual / variance.clamp_min(1e-300).sqrt(), torch.nan
    )


def _names(model: Any, width: int, size: int) -> list[str]:
    """What the columns are called."""
    seen = ["noise"] if width == 1 else [f"noise {i}" for i in range(width)]
    components, sizes = getattr(model.emission, "names", None), getattr(model.emission, "sizes", None)
    if components is None or sizes is None:
        return [*seen, *(f"state {i}" for i in range(size))]
    return seen + [
        name if i == 0 else f"{name} [{i}]" for name, n in zip(components, sizes, strict=True) for i in range(n)
    ]
