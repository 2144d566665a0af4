"""Components of a series in state-space form: how each moves, and how they stand beside each other."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statespan.belief import Diffuse, Gaussian
from statespan.errors import StatespanError, brief
from statespan.part import Affine, GaussianInitial, LinearPart, Part
from statespan.parts.gaussian_initial import stationary
from statespan.parts.linear import inputs_of
from statespan.sequences import Event
from statespan.tree import Tree


class Driven(Part, LinearPart):
    r"""x -> A x + R diag(s) e, with A and R as they are given and only the sizes s of the shocks to be fitted.

    Args:
        dim: D.
        shocks: which size each shock has: [0, 0] is two shocks of one size, [] none.

    Source:
        Durbin and Koopman, Time Series Analysis by State Space Methods 2012, section 3.2.
    """

    matrix: Tensor
    loading: Tensor

    def __init__(self, dim: int, shocks: Sequence[int]):
        super().__init__()
        self.event, self.shocks = Event(1, None, dim), list(shocks)
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("loading", torch.eye(dim, len(self.shocks)))
        self.size = nn.Parameter(torch.ones(max(self.shocks, default=-1) + 1))

    @property
    def variance(self) -> Tensor:
        """Of each shock, s^2."""
        return self.size.square()

    def affine(self, u: Tree) -> Affine:
        """A, nothing and R diag(s)."""
        return Affine(self.matrix, self.matrix.new_zeros(len(self.matrix)), self.loading * self.size[self.shocks])


class Wave(Part, LinearPart):
    r"""A cycle: (c, c*) -> r (c cos w + c* sin w, -c sin w + c* cos w) + s e, of frequency w and damping r.

    r = sigmoid(damping) where it is damped, else 1; the period 2 pi / w lies between two bounds.

    Args:
        shortest: the least period, in steps.
        longest: the largest period.
        damped: whether r is below 1.

    Source:
        Harvey, Forecasting, Structural Time Series Models and the Kalman Filter 1989, section 2.3.3.
    """

    def __init__(self, shortest: float, longest: float, damped: bool = True):
        super().__init__()
        self.event, self.bounds = Event(1, None, 2), (2 * math.pi / longest, 2 * math.pi / shortest)
        self.place = nn.Parameter(torch.zeros(()))
        self.damping = nn.Parameter(torch.tensor(2.0)) if damped else None
        self.size = nn.Parameter(torch.ones(()))

    @property
    def period(self) -> Tensor:
        """2 pi / w, in steps."""
        low, high = self.bounds
        return 2 * math.pi / (low + (high - low) * self.place.sigmoid())

    @property
    def variance(self) -> Tensor:
        """Of its shocks, s^2."""
        return self.size.square()

    @property
    def persistence(self) -> Tensor | None:
        """The share r that is left of it after a step, where it is damped."""
        return None if self.damping is None else self.damping.sigmoid()

    @property
    def _turn(self) -> Tensor:
        """The rotation, damped."""
        angle = 2 * math.pi / self.period
        turn = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
        return turn if self.damping is None else self.damping.sigmoid() * turn

    @torch.no_grad()
    def set(self, period: float, damping: float = 1.0) -> None:
        """Make these the period, in steps, and r."""
        low, high = self.bounds
        share = (2 * math.pi / period - low) / (high - low)
        if not 0 < share < 1:
            raise StatespanError(
                f"a cycle of {period:g} steps lies outside its bounds; give other shortest= and longest="
            )
        self.place.fill_(math.log(share / (1 - share)))
        if self.damping is not None:
            self.damping.fill_(math.log(damping / (1 - damping)))

    def affine(self, u: Tree) -> Affine:
        """The rotation, nothing and s I."""
        matrix = self._turn
        return Affine(matrix, matrix.new_zeros(2), self.size * torch.eye(2, dtype=matrix.dtype, device=matrix.device))


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of two polynomials, (m,) and (n,) to (m + n - 1,), the constant first."""
    rows = [torch.nn.functional.pad(a * b[j], (j, len(b) - 1 - j)) for j in range(len(b))]
    return torch.stack(rows).sum(0)


def spread(coefficients: Tensor, season: int) -> Tensor:
    """1 + sum of c_j L^(j season)."""
    out = coefficients.new_zeros(len(coefficients) * season + 1)
    out[0] = 1.0
    at = torch.arange(1, len(coefficients) + 1) * season
    return out.index_add(0, at.to(out.device), coefficients)


def autoregression(free: Tensor) -> Tensor:
    r"""Coefficients of a stationary autoregression, (p,), from any p numbers x.

    x / (1 + x^2)^(1/2) are the partial autocorrelations, and the coefficients follow by Durbin and Levinson.

    Source:
        Monahan, "A note on enforcing stationarity in autoregressive-moving average models", Biometrika 71, 1984.

    Example:
        >>> autoregression(torch.tensor([0.75, -0.75]))
        tensor([ 0.9600, -0.6000])
    """
    partial = free / (1 + free.square()).sqrt()
    found = partial[:1]
    for k in range(1, len(partial)):
        found = torch.cat([found - partial[k] * found.flip(0), partial[k : k + 1]])
    return found


def unrestricted(coefficients: Tensor, name: str) -> Tensor:
    """The numbers that `autoregression` makes these coefficients from.

    Raises:
        StatespanError: no numbers do: a root lies on or inside the unit circle.
    """
    left, partial = coefficients, coefficients.new_zeros(len(coefficients))
    for k in range(len(coefficients) - 1, -1, -1):
        partial[k] = left[k]
        if not abs(float(left[k])) < 1:
            raise StatespanError(
                f"{name} has a root on or inside the unit circle; difference the series, or give the coefficients with "
                "that root inverted"
            )
        left = (left[:k] + left[k] * left[:k].flip(0)) / (1 - left[k] ** 2)
    return partial / (1 - partial.square()).sqrt()


class Arima(Part, LinearPart):
    r"""(1 - phi(L)) (1 - Phi(L^s)) (1 - L)^d (1 - L^s)^D y_t = (1 + theta(L)) (1 + Theta(L^s)) s e_t.

    The state is Harvey's r = max(p, q + 1) numbers of the ARMA process of the differences, and the last d + s D values
    of y, from which the differences are summed up again. Whatever a fit does, every autoregressive polynomial is
    stationary and every moving average invertible.

    Args:
        order: p, d, q.
        seasonal: P, D, Q.
        season: s, in steps.

    Source:
        Harvey 1989, section 3.3; Durbin and Koopman 2012, section 3.4; the coefficients: `autoregression`.
    """

    def __init__(self, order: Sequence[int], seasonal: Sequence[int] = (0, 0, 0), season: int = 1):
        super().__init__()
        (p, d, q), (sp, sd, sq) = order, seasonal
        self.free_ar, self.free_ma = nn.Parameter(torch.zeros(p)), nn.Parameter(torch.zeros(q))
        self.free_seasonal_ar, self.free_seasonal_ma = nn.Parameter(torch.zeros(sp)), nn.Parameter(torch.zeros(sq))
        self.size = nn.Parameter(torch.ones(()))
        self.season, self.lags = season, d + sd * season
        self.width = max(p + sp * season, q + sq * season + 1)
        self.event = Event(1, None, self.width + self.lags)
        difference = torch.ones(1, dtype=torch.float64)
        for gap in [1] * d + [season] * sd:
            difference = multiply(difference, spread(-torch.ones(1, dtype=torch.float64), gap))
        self.difference = [-x for x in difference[1:].tolist()]
        """What of each of the last values of y its next one takes over."""

    @property
    def variance(self) -> Tensor:
        """Of the shocks, s^2."""
        return self.size.square()

    @property
    def ar(self) -> Tensor:
        """phi, (p,)."""
        return autoregression(self.free_ar)

    @property
    def ma(self) -> Tensor:
        """theta, (q,)."""
        return -autoregression(self.free_ma)

    @property
    def seasonal_ar(self) -> Tensor:
        """Phi, (P,)."""
        return autoregression(self.free_seasonal_ar)

    @property
    def seasonal_ma(self) -> Tensor:
        """Theta, (Q,)."""
        return -autoregression(self.free_seasonal_ma)

    @torch.no_grad()
    def set(self, ar: Any = None, ma: Any = None, seasonal_ar: Any = None, seasonal_ma: Any = None) -> None:
        """Make these the coefficients; what is None stays.

        Raises:
            StatespanError: another number of them, or a root on or inside the unit circle.
        """
        given = {"ar": (ar, 1), "ma": (ma, -1), "seasonal_ar": (seasonal_ar, 1), "seasonal_ma": (seasonal_ma, -1)}
        for name, (value, sign) in given.items():
            if value is not None:
                free = getattr(self, f"free_{name}")
                new = sign * torch.as_tensor(value, dtype=free.dtype, device=free.device)
                if new.shape != free.shape:
                    raise StatespanError(f"{name}={brief(value)}: this model has {len(free)} of them")
                free.copy_(unrestricted(new, name))

    def arma(self) -> Affine:
        """The move of the differences' process."""
        ar = -multiply(spread(-self.ar, 1), spread(-self.seasonal_ar, self.season))[1:]
        ma = multiply(spread(self.ma, 1), spread(self.seasonal_ma, self.season))
        first = torch.nn.functional.pad(ar, (0, self.width - len(ar)))[:, None]
        shift = torch.eye(self.width, self.width - 1, dtype=ar.dtype, device=ar.device)
        loading = torch.nn.functional.pad(ma, (0, self.width - len(ma)))[:, None]
        return Affine(torch.cat([first, shift], 1), ar.new_zeros(self.width), loading * self.size)

    def row(self) -> Tensor:
        """How y reads off the state: (1, D)."""
        head = self.size.new_zeros(self.width)
        head[0] = 1.0
        return torch.cat([head, self.size.new_tensor(self.difference)])[None]

    def affine(self, u: Tree) -> Affine:
        """The ARMA block, and below it the last values of y, each moved on by one."""
        inner = self.arma()
        if not self.lags:
            return inner
        keep = torch.eye(self.lags - 1, self.width + self.lags, dtype=self.size.dtype, device=self.size.device)
        lower = torch.cat([self.row(), keep.roll(self.width, 1)])
        upper = torch.nn.functional.pad(inner.matrix, (0, self.lags))
        offset = torch.nn.functional.pad(inner.offset, (0, self.lags))
        return Affine(torch.cat([upper, lower]), offset, torch.nn.functional.pad(inner.scale, (0, 0, 0, self.lags)))


class MovesStart(Part, GaussianInitial):
    """The stationary start of a component whose move has a stationary block first; what comes after it is diffuse.

    Args:
        move: the component's move: a `Wave`, or an `Arima`, whose last values of y are not known.
    """

    def __init__(self, move: nn.Module):
        super().__init__()
        self.move = move

    def gaussian(self, batch: int) -> Gaussian | Diffuse:
        """The belief about z_1 for `batch` sequences."""
        move: Any = self.move
        lags = getattr(move, "lags", 0)
        mean, root = stationary(*(move.arma() if lags else move.affine(None)))
        if not lags:
            return Gaussian(mean.expand(batch, -1), root.expand(batch, -1, -1))
        mean = torch.nn.functional.pad(mean, (0, lags))
        root = torch.nn.functional.pad(root, (0, lags, 0, lags))
        flat = torch.eye(len(mean), dtype=root.dtype, device=root.device)[:, -lags:]
        return Diffuse(mean.expand(batch, -1), root.expand(batch, -1, -1), flat.expand(batch, -1, -1))


class Starts(Part, GaussianInitial):
    """Independent starts beside each other.

    Args:
        parts: one for each component.
    """

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.each = nn.ModuleList(parts)

    def gaussian(self, batch: int) -> Diffuse:
        """The belief about z_1 for `batch` sequences."""
        made: list[Any] = [part.gaussian(1) for part in self._parts()]  # each (1, ...)
        flats = [x.mean.new_zeros(x.mean.shape[1], 0) if x.factor is None else x.factor[0] for x in made]
        mean = torch.cat([x.mean[0] for x in made])
        root, flat = torch.block_diag(*[x.scale[0] for x in made]), torch.block_diag(*flats)
        return Diffuse(mean.expand(batch, -1), root.expand(batch, -1, -1), flat.expand(batch, -1, -1))

    def _parts(self) -> list[Any]:
        return list(self.each)


class Moves(Part, LinearPart):
    """Independent moves beside each other.

    Args:
        parts: one for each component.
    """

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.each = nn.ModuleList(parts)
        self.event = Event(1, None, sum(part.event.dim for part in self._parts()))

    def affine(self, u: Tree) -> Affine:
        """Blocks on the diagonal."""
        each = [part.affine(u) for part in self._parts()]
        offset = torch.cat([x.offset for x in each], -1)
        return Affine(torch.block_diag(*[x.matrix for x in each]), offset, torch.block_diag(*[x.scale for x in each]))

    def _parts(self) -> list[Any]:
        return list(self.each)


class Sum(Part, LinearPart):
    r"""y = sum of what each component shows, plus noise.

    Args:
        names: what each component is called.
        sizes: how many states each has.
        inputs: how many of the inputs each reads its states by, in their order; 0 for a component without inputs.
    """

    row: Tensor

    def __init__(self, names: Sequence[str], sizes: Sequence[int], inputs: Sequence[int]):
        super().__init__()
        self.names, self.sizes, self.inputs, self.event = list(names), list(sizes), list(inputs), Event(1, None, 1)
        self.register_buffer("row", torch.zeros(1, sum(sizes)))
        self.scale = nn.Parameter(torch.ones(1, 1))

    @property
    def takes_inputs(self) -> bool:
        """If a component does."""
        return sum(self.inputs) > 0

    @property
    def variance(self) -> Tensor:
        """Of the noise."""
        return self.scale[0, 0].square()

    def label(self, name: str) -> str:
        """A parameter by the component it is of: `transition.each.0.variance` is `level.variance`."""
        part, *rest = name.split(".")
        return ".".join([self.names[int(rest[1])], *rest[2:]] if part == "transition" else ["noise", *rest])

    def matrix(self, u: Tree) -> Tensor:
        """(1, D), or (..., 1, D) under inputs (..., U)."""
        total = sum(self.inputs)
        if not total:
            return self.row
        given = inputs_of(u, total, self)
        pieces, at, used = [], 0, 0
        for size, count in zip(self.sizes, self.inputs, strict=True):
            own = self.row[:, at : at + size].expand(*given.shape[:-1], 1, size)
            pieces.append(given[..., None, used : used + count] if count else own)
            at, used = at + size, used + count
        return torch.cat(pieces, -1)

    def affine(self, u: Tree) -> Affine:
        """The row, nothing and the noise's size."""
        return Affine(self.matrix(u), self.row.new_zeros(1), self.scale)
