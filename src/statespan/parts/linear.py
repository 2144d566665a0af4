"""Linear Gaussian parts: how a vector moves and what it emits."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import MultivariateNormal

from statespan.errors import StatespanError
from statespan.part import Affine, Generative, LinearPart, Part
from statespan.parts.priors import MatrixNormalInverseWishart
from statespan.sequences import Event
from statespan.tree import Tree


def factor(covariance: Tensor) -> Tensor:
    """A lower triangular square root of a covariance that may be singular: (..., D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    # What rounding leaves of a zero eigenvalue would have a root of the square root of rounding.
    least = values[..., -1:] * (values.shape[-1] * torch.finfo(values.dtype).eps)
    return lower(vectors * torch.where(values > least, values, 0.0).sqrt()[..., None, :])


class _Turned(torch.autograd.Function):
    """root Q, lower triangular, where the gradient takes the rotation Q as fixed."""

    @staticmethod
    def forward(ctx: Any, root: Tensor) -> Tensor:
        q, r = torch.linalg.qr(root.mT, mode="reduced")
        signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(root.dtype)
        ctx.save_for_backward(q * signs[..., None, :])
        return r.mT * signs[..., None, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (turn,) = ctx.saved_tensors
        return gradients[0] @ turn.mT


def lower(root: Tensor) -> Tensor:
    """The lower triangular L with L L' = root root', by one QR: (..., D, M) with M >= D to (..., D, D).

    Its gradient is that of whatever depends on L through L L' alone, as a covariance's root is used; with the rotation
    taken as fixed it has no inverse in it and holds where root root' is singular.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 8.4.
    """
    triangle: Any = _Turned.apply(root)
    return triangle


class _Upright(torch.autograd.Function):
    """L itself, where the gradient takes it as a triangle."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return scale.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (scale,) = ctx.saved_tensors
        half = (scale.mT @ gradients[0]).tril()
        half = half - 0.5 * torch.diag_embed(half.diagonal(dim1=-2, dim2=-1))
        return inverse(scale).mT @ (half + half.mT)


def upright(scale: Tensor) -> Tensor:
    r"""The lower triangle that `lower` gave, for what hangs on it other than through L L': a triangular solve, points.

    Its gradient is that of the Cholesky root: dL = L half(L^-1 d(L L') L^-T), half the lower triangle with half the
    diagonal; along a direction without variance it has none.

    Source:
        Sarkka, Bayesian Filtering and Smoothing 2013, theorem A.1.
    """
    triangle: Any = _Upright.apply(scale)
    return triangle


def inverse(scale: Tensor) -> Tensor:
    """The inverse of a root (..., D, D), zero along a direction that has no variance."""
    return torch.linalg.pinv(scale, rtol=10 * scale.shape[-1] * torch.finfo(scale.dtype).eps)


@functools.cache
def _below(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 on and below the diagonal, 0 above."""
    with torch.inference_mode(False):
        return torch.ones(size, size, dtype=dtype, device=device).tril()


def root(scale: Tensor) -> Tensor:
    """The lower triangle of a free matrix as a covariance's root: columns turned so that no diagonal is negative."""
    diagonal = scale.detach().diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return scale * torch.copysign(_below(scale.shape[-1], scale.dtype, scale.device), diagonal)


def radius(matrix: Tensor) -> Tensor:
    """The spectral radius of a square matrix."""
    return torch.linalg.eigvals(matrix).abs().max()


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """A x: (E, D) or (..., E, D) and (..., D) to (..., E)."""
    return x @ matrix.mT if matrix.dim() == 2 else (matrix @ x[..., None])[..., 0]


def conditional(affine: Affine, z: Tensor) -> MultivariateNormal:
    """The distribution of A z + b + noise for states (..., D), which may have more axes than the matrices' steps."""

    def fit(x: Tensor, rank: int) -> Tensor:
        front = x.dim() - rank
        return x if front == 0 else x.view(*x.shape[:front], *[1] * (z.dim() - 1 - front), *x.shape[front:])

    mean = apply(fit(affine.matrix, 2), z) + fit(affine.offset, 1)
    return MultivariateNormal(mean, scale_tril=fit(affine.scale, 2), validate_args=False)


def inputs_of(u: Tree, width: int, part: nn.Module) -> Tensor:
    """The inputs, if they are there and (..., width)."""
    if not isinstance(u, Tensor) or u.shape[-1] != width:
        got = "none were given" if u is None else f"{u.shape[-1]} were given"
        raise StatespanError(
            f"{type(part).__name__} takes {width} inputs a step and {got}; "
            "give inputs= with y, and future= with a forecast"
        )
    return u


class Regression(NamedTuple):
    """Expected sums of a regression of y on x = (z, 1, u): the weight, and sums of x x', y x' and y y'."""

    weight: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor


class Linear(Part, LinearPart, Generative):
    r"""x -> A x + B u + b + scale e: a move of the state, or an observation of it.

    A prior is a normal-inverse-Wishart: on the noise's covariance Q, p(Q) ~ |Q|^(-(nu + E + 1) / 2) exp(-tr(Psi Q^-1) /
    2), and on A given Q, rows about M with covariance Q and the columns' precision K. Every fit then maximises
    log p(y) plus `log_prior()`, EM in closed form.

    With `stable` the spectral radius of A is kept at that bound or below. The gradient moves `matrix` freely and what
    acts is `stable_matrix`, the matrix shrunk to the bound where it lies outside. EM's step is cut: of the point where
    the way from the old A to the new one leaves the region, and the new A shrunk, the one is taken under which the data
    are more likely. The first never does worse than the old A, as what EM maximises is concave in A: EM stays monotone.

    Args:
        inputs: D, the width of x.
        outputs: E, the width of the result; None means the same (a move).
        controls: U, the width of the inputs u that act on it; 0 leaves B away.
        stable: the bound on the spectral radius, such as 0.999; None: there is none.
        prior_scale: Psi, (E, E), or a number for that times the identity; None is no prior on Q.
        degrees: nu; E + 2 unless you say otherwise: then Psi is the covariance expected a priori.
        matrix_strength: K, one number or one for each column of A; each counts as that many observations of an x of
            size one. 0 is no prior on A.
        prior_matrix: M, (E, D), or a number for that times the identity.

    Raises:
        StatespanError: it takes inputs, and the data have none or of another width; a bound or a prior that is none.

    Source:
        Kalman 1960; Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 6.3; the prior: Rossi, Allenby
        and McCulloch 2005, section 2.8.5.

    Example:
        >>> Linear(2).matrix.shape
        torch.Size([2, 2])
        >>> Linear(1, stable=0.5).stable_matrix.item()
        0.5
    """

    event: Event
    control: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        controls: int = 0,
        stable: float | None = None,
        prior_scale: Any = None,
        degrees: float | None = None,
        matrix_strength: Any = 0.0,
        prior_matrix: Any = 0.0,
    ):
        super().__init__()
        outputs = inputs if outputs is None else outputs
        if stable is not None and not (outputs == inputs and 0 < stable <= 1):
            raise StatespanError(f"Linear({inputs}, {outputs}, stable={stable}): a bound of 0 to 1, on a square matrix")
        self.event, self.controls, self.stable = Event(1, None, outputs), controls, stable
        self.prior = MatrixNormalInverseWishart.check(
            inputs, outputs, prior_scale, degrees, matrix_strength, prior_matrix
        )
        self.matrix = nn.Parameter(torch.eye(outputs, inputs))
        self.offset = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.eye(outputs))
        self.register_parameter("control", nn.Parameter(torch.zeros(outputs, controls)) if controls else None)

    @property
    def covariance(self) -> Tensor:
        """The noise's covariance, (E, E)."""
        scale = root(self.scale)
        return scale @ scale.mT

    @property
    def stable_matrix(self) -> Tensor | None:
        """A, shrunk to the bound on its spectral radius; None where there is none."""
        if self.stable is None:
            return None
        size = radius(self.matrix)
        return self.matrix if float(size.detach()) <= self.stable else self.matrix * (self.stable / size)

    def still(self) -> Affine:
        """A, b and scale, as without inputs."""
        matrix = self.stable_matrix
        return Affine(self.matrix if matrix is None else matrix, self.offset, root(self.scale))

    def affine(self, u: Tree) -> Affine:
        """A, b + B u and scale."""
        affine = self.still()
        if self.control is None:
            return affine
        return affine._replace(offset=self.offset + inputs_of(u, self.controls, self) @ self.control.mT)

    def log_prior(self) -> Tensor | float:
        """The prior's log-density of A and the noise's covariance, up to a constant; 0 without one."""
        affine = self.still()
        return self.prior.log(affine.matrix, affine.scale)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of the result given x = z."""
        return conditional(self.affine(u), z)

    def statistics(self, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor) -> Regression:
        """Expected sums over steps and sequences.

        Args:
            z: (T, B, D), the posterior mean of what goes in.
            y: (T, B, E), the posterior mean of what comes out.
            spread: (D + E, D + E), the sum of their joint posterior covariances, each times its weight.
            u: (T, B, U) inputs, or None.
            weights: (T, B), how often each step counts.
        """
        size = z.shape[-1]
        x = [z, torch.ones_like(z[..., :1])]
        if self.control is not None:
            x.append(inputs_of(u, self.controls, self).expand(*z.shape[:-1], -1))
        rows, out, weight = torch.cat(x, -1).flatten(0, -2), y.flatten(0, -2), weights.flatten()[:, None]
        xx, yx = rows.mT @ (weight * rows), (weight * out).mT @ rows
        xx[:size, :size] += spread[:size, :size]
        yx[:, :size] += spread[size:, :size]
        return Regression(weight.sum(), xx, yx, out.mT @ (weight * out) + spread[size:, size:])

    @torch.no_grad()
    def maximize(self, stats: Regression) -> None:
        """Least squares for what is free among A, b and B, given the rest and the prior; then the noise about it.

        Source:
            Shumway and Stoffer 1982; Ghahramani and Hinton 1996; with held coefficients, Wu, Pai and Hosking 1996.
        """
        if float(stats.weight) <= 0:
            return
        blocks = [self.matrix, self.offset[:, None], *([] if self.control is None else [self.control])]
        free = [self.matrix.requires_grad, self.offset.requires_grad]
        free += [] if self.control is None else [self.control.requires_grad]
        weight = torch.cat(blocks, -1)
        at = torch.cat([torch.full((block.shape[1],), here) for block, here in zip(blocks, free, strict=True)])
        at = at.to(weight.device)
        size = self.matrix.shape[1]
        # The prior on A is `strength` more observations of M.
        extra = torch.nn.functional.pad(self.prior.strength.to(weight), (0, weight.shape[1] - size))
        xx, yx = stats.xx + torch.diag(extra), stats.yx.clone()
        yx[:, :size] += self.prior.mean.to(weight) * extra[:size]

        def solve(at: Tensor) -> None:
            rest = yx[:, at] - weight[:, ~at] @ xx[~at][:, at]
            # A direction that the states never took says nothing of its coefficients: the shortest fit.
            weight[:, at] = rest @ torch.linalg.pinv(xx[at][:, at], hermitian=True)

        if bool(at.any()):
            before = self.still().matrix
            solve(at)
            if self.stable is not None and float(radius(weight[:, :size])) > self.stable:
                at[:size] = False  # what else is free follows the cut A
                curvature = xx[:size, :size]
                if bool(at.any()):
                    curvature = (
                        curvature - xx[:size, at] @ torch.linalg.pinv(xx[at][:, at], hermitian=True) @ xx[at, :size]
                    )
                weight[:, :size] = self._inside(before, weight[:, :size], curvature)
                if bool(at.any()):
                    solve(at)
        for block, new in zip(blocks, weight.split([block.shape[1] for block in blocks], -1), strict=True):
            block.copy_(new)
        if self.scale.requires_grad:
            cross = weight @ stats.yx.mT
            noise = stats.yy - cross - cross.mT + weight @ stats.xx @ weight.mT + self.prior.scatter(weight[:, :size])
            noise = noise / (stats.weight + self.prior.extra(len(noise)))
            self.scale.copy_(factor(0.5 * (noise + noise.mT)))

    def _inside(self, before: Tensor, best: Tensor, curvature: Tensor) -> Tensor:
        """The better of two stable matrices: where the way to the best one leaves the region, and it shrunk."""
        low, high, bound = 0.0, 1.0, self.stable or 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if float(radius(before + middle * (best - before))) <= bound:
                low = middle
            else:
                high = middle
        inverse_noise = torch.linalg.pinv(self.covariance, hermitian=True)

        def loss(matrix: Tensor) -> float:
            off = matrix - best
            return float((inverse_noise * (off @ curvature @ off.mT)).sum())

        return min(before + low * (best - before), best * (bound / radius(best)), key=loss)


class Scheduled(Part, LinearPart, Generative):
    r"""x -> A_s x + b_s + scale_s e at step s, where the inputs say which step it is: `inputs=range(T)`.

    The step travels with the data, so that a window, a stream and a forecast each know where they are.

    Args:
        inputs: D, the width of x.
        outputs: E, the width of the result.
        steps: how many matrices, offsets and scales there are: each S, or 1 for one that never changes.

    Raises:
        StatespanError: a step that none was given for.

    Source:
        Durbin and Koopman, Time Series Analysis by State Space Methods 2012, section 4.1.

    Example:
        >>> part = Scheduled(2, 1, [3, 1, 1])
        >>> part.affine(torch.tensor([[0.0], [2.0]])).matrix.shape
        torch.Size([2, 1, 2])
    """

    event: Event

    def __init__(self, inputs: int, outputs: int, steps: Sequence[int] = (1, 1, 1)):
        super().__init__()
        self.event, self.steps = Event(1, None, outputs), tuple(steps)
        self.matrix = nn.Parameter(torch.eye(outputs, inputs).repeat(self.steps[0], 1, 1))
        self.offset = nn.Parameter(torch.zeros(self.steps[1], outputs))
        self.scale = nn.Parameter(torch.eye(outputs).repeat(self.steps[2], 1, 1))

    @property
    def takes_inputs(self) -> bool:
        """Always."""
        return True

    def affine(self, u: Tree) -> Affine:
        """A_s, b_s and scale_s, picked by the step."""
        at = inputs_of(u, 1, self)
        if at.dim() == 3 and bool((at == at[:, :1]).all()):
            at = at[:, :1]  # the same for every sequence: kept once
        step = at[..., 0].round().long()
        last = min((n for n in self.steps if n > 1), default=None)
        if last is not None and not bool(((step >= 0) & (step < last)).all()):
            wrong = int(step[(step < 0) | (step >= last)][0])
            raise StatespanError(f"step {wrong} lies outside 0..{last - 1}, the steps that matrices were given for")
        begin, row = int(step.flatten()[0]), step[:, 0] if step.shape[1:] == (1,) else None
        if row is not None and bool((row == torch.arange(begin, begin + len(row), device=row.device)).all()):
            step = (slice(begin, begin + len(row)), None)  # one step after the other: no copy
        pick = lambda x: x[step] if len(x) > 1 else x[0]  # noqa: E731
        return Affine(pick(self.matrix), pick(self.offset), pick(root(self.scale)))

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of the result given x = z."""
        return conditional(self.affine(u), z)


class Modulated(Part, LinearPart, Generative):
    r"""x -> (A + u_1 A_1 + ... + u_U A_U) x + b + scale e: a matrix that the inputs change.

    A regression whose coefficients move in time has y_t = u_t' z_t: A = 0 and A_k the k-th unit row.

    Args:
        inputs: D, the width of x.
        outputs: E, the width of the result.
        controls: U, the width of the inputs.

    Source:
        Durbin and Koopman, Time Series Analysis by State Space Methods 2012, section 3.6.

    Example:
        >>> part = Modulated(2, 1, controls=2)
        >>> part.affine(torch.tensor([3.0, 4.0])).matrix
        tensor([[3., 4.]], grad_fn=<AddBackward0>)
    """

    event: Event

    def __init__(self, inputs: int, outputs: int, controls: int):
        super().__init__()
        self.event, self.controls = Event(1, None, outputs), controls
        self.matrix = nn.Parameter(torch.zeros(outputs, inputs))
        units = torch.eye(controls, inputs)[:, None].expand(-1, outputs, -1)
        self.change = nn.Parameter(units.clone())
        self.offset = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.eye(outputs))

    def affine(self, u: Tree) -> Affine:
        """A(u), b and scale."""
        change = torch.einsum("...u,ued->...ed", inputs_of(u, self.controls, self), self.change)
        return Affine(self.matrix + change, self.offset, root(self.scale))

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of the result given x = z."""
        return conditional(self.affine(u), z)
