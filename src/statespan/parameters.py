"""What a model's parameters are in the user's terms: how many are free, and how surely they are known."""

import inspect
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.fit.em import notes, observations
from statespan.method import run, total, weighted
from statespan.methods import method_for
from statespan.verbs import ask

LARGEST = 4000
"""With more unconstrained parameters than this in a part, they are counted by their shapes."""
NORMAL_95 = 1.959963984540054
BOUNDARY = 10.0
"""A variance whose standard error is more times it than this lies at zero: its root is there within rounding."""
SIGNED = ("ar", "ma", "seasonal_ar", "seasonal_ma")
"""Coefficients that may be of either sign, though they are made of others."""


def natural(part: Any, elsewhere: Collection[int] = ()) -> dict[str, Tensor]:
    """The parameters of a part as a user speaks of them, by name, with their graph back to the unconstrained ones.

    They are its public tensor properties (`probs`, `covariance`), those of the parts inside it, and those parameters
    that none of these depends on.

    Args:
        part: any module.
        elsewhere: `id` of parameters that another part names.
    """
    own = {id(p): (name, p) for name, p in part.named_parameters() if p.requires_grad}
    values: dict[str, Tensor] = {}
    with torch.enable_grad():
        found = {name: getattr(part, name) for name, x in inspect.getmembers(type(part)) if isinstance(x, property)}
        if callable(getattr(part, "probs", None)):
            found["probs"] = part.probs()
        for name, value in found.items():
            if not name.startswith("_") and isinstance(value, Tensor) and value.requires_grad:
                values[name] = value
    if "covariance" in values:
        values.pop("variance", None)  # its diagonal
    for value in values.values():
        with torch.enable_grad():
            whole = value.sum()
        seen = torch.autograd.grad(whole, [p for _, p in own.values()], retain_graph=True, allow_unused=True)
        own = {key: x for (key, x), g in zip(own.items(), seen, strict=True) if g is None}
        if not own:
            break
    rest: dict[str, Tensor] = {}
    for name, child in part.named_children():
        inside = {id(p) for p in child.parameters()} & own.keys() - set(elsewhere)
        if inside:
            rest |= {f"{name}.{inner}": value for inner, value in natural(child, elsewhere).items()}
            own = {key: x for key, x in own.items() if key not in inside}
    return {**{name: p for key, (name, p) in own.items() if key not in elsewhere}, **rest, **values}


def free_parameters(model: Any) -> int:
    """How many parameters are free: the dimension of what the model can be without leaving what is held.

    The rank of the natural parameters as functions of the unconstrained ones: a row of n probabilities counts n - 1, a
    zero of a table, an entry that is held (`requires_grad` False, `fixed=`) nothing, tied ones once. A part with very
    many is counted by shapes: its unconstrained parameters, less one for every distribution.

    Args:
        model: a state space, or a part.

    Source:
        Catchpole and Morgan, "Detecting parameter redundancy", Biometrika 84, 1997: the rank of the derivatives.

    Example:
        >>> import statespan as ss
        >>> free_parameters(ss.hmm(states=3, emission=ss.Gaussian(2)))
        23
    """
    parts = getattr(model, "parts", (model,))
    sets = [{id(p) for p in part.parameters()} for part in parts]
    apart = sum(len(s) for s in sets) == len(set().union(*sets))
    groups = [(part,) for part in parts] if apart else [parts]
    return sum(_count(group) for group in groups)


def _count(parts: Sequence[Any]) -> int:
    free = _free(parts)
    if not free:
        return 0
    values = [(name, value) for part in parts for name, value in natural(part).items()]
    if sum(p.numel() for p in free) > LARGEST or sum(v.numel() for _, v in values) > 4 * LARGEST:
        rows = sum(v.numel() // v.shape[-1] for name, v in values if name == "probs")
        return sum(int(p.isfinite().sum()) for p in free) - rows
    with torch.enable_grad():
        matrix = _jacobian([_regular(name, v) for name, v in values], free)
    return _basis(matrix).shape[1]


def _free(parts: Sequence[Any]) -> list[Tensor]:
    return list({id(p): p for part in parts for p in part.parameters() if p.requires_grad}.values())


def _regular(name: str, value: Tensor) -> Tensor:
    """Probabilities by their logarithms, where the rank can be seen.

    One that is zero is none, and one near 1 says nothing that the others of its row do not say, but for rounding.
    """
    return value[(value > 0) & (value < 0.999)].log() if name == "probs" else value


def _jacobian(values: list[Tensor], free: list[Tensor]) -> Tensor:
    """Derivatives of all entries of `values` by all of `free`: (N, P)."""
    rows = []
    for value in values:
        for entry in value.reshape(-1):
            grads = torch.autograd.grad(entry, free, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(torch.cat([g.reshape(-1) for g in grads]).nan_to_num(0.0))
    count = sum(p.numel() for p in free)
    return torch.stack(rows).double() if rows else free[0].new_zeros(0, count, dtype=torch.float64)


def _basis(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the directions that change anything, (P, r)."""
    scale = matrix.norm(dim=1, keepdim=True)
    some = scale[:, 0] > 0
    matrix = matrix[some] / scale[some]
    if not len(matrix):
        return matrix.new_zeros(matrix.shape[1], 0)
    # By the smaller Gram matrix; rows are of length one, so a relative size says what is nothing.
    _, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    return right[sizes > 1e-9 * sizes[0]].mT


class Summary(NamedTuple):
    """The parameters of a fitted model with standard errors and intervals; print it, or make a frame of it.

    Args:
        columns: one row a parameter: name, index, estimate, error, low, high, note.
        log_prob: the log-likelihood.
        observations: how many steps are observed.
        parameters: how many parameters are free.
        level: of the intervals.
        notes: what to beware of.
    """

    columns: dict[str, list[Any]]
    log_prob: float
    observations: int
    parameters: int
    level: float
    notes: list[str]

    def frame(self) -> dict[str, list[Any]]:
        """Columns for a data frame, one row a parameter; `pandas.DataFrame(summary.frame())` makes it one."""
        return dict(self.columns)

    def __str__(self) -> str:
        """A table."""
        head = (
            f"log-likelihood {self.log_prob:.6g}, {self.observations} observations, {self.parameters} free parameters"
        )
        rows = [("parameter", "estimate", "std. error", f"{self.level:.0%} interval", "")]
        for name, index, *numbers, note in zip(*self.columns.values(), strict=True):
            estimate, error, low, high = (_short(x) for x in numbers)
            rows.append((f"{name}[{index}]" if index else name, estimate, error, low, f"{high}  {note}".rstrip()))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join([head, "", *(line.rstrip() for line in lines), *(f"note: {n}" for n in self.notes)])


def _short(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def summary(
    model: Any,
    y: Any,
    lengths: Any = None,
    inputs: Any = None,
    states: Any = None,
    weights: Any = None,
    level: float = 0.95,
) -> Summary:
    r"""Standard errors and intervals of a fitted model's parameters, from the observed information.

    The information is minus the second derivative of log p(y) + log prior by the unconstrained parameters, here by
    central differences of the exact gradient along directions that change the model; the delta method carries its
    inverse to the natural parameters. Intervals are symmetric on the logit scale for probabilities, on the logarithmic
    one for what is positive (variances, rates), and plain otherwise, so none leaves its range.

    A parameter that is held, or a probability that is zero, has no error. Nor has a variance that is fitted at zero: it
    is on the boundary, where the delta method has nothing to say, and its `note` says so.
    Where the log-likelihood does not curve downwards (an unused state, a fit that has not converged) there is none
    either, and a note says so.

    Args:
        model: a fitted state space.
        y: the sequences it was fitted to.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.
        states: labelled states.
        weights: weights of sequences or steps.
        level: of the intervals.

    Returns:
        A `Summary`: `print(summary)`, `.frame()`.

    Raises:
        StatespanError: a level that is none, or data that do not fit the model.

    Source:
        Visser, Raijmakers and Molenaar, Confidence intervals for hidden Markov model parameters, British Journal of
        Mathematical and Statistical Psychology 53, 2000; Zucchini, MacDonald and Langrock 2016, section 3.6.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=1, emission=ss.Gaussian(1), seed=0)
        >>> y = [0.3, -0.2, 0.9, 0.1, 0.5]
        >>> found = summary(model.fit(y), y)
        >>> found.frame()["name"][-2:]
        ['emission.mean', 'emission.covariance']
    """
    if not 0 < level < 1:
        raise StatespanError(f"summary(level={level}): use a number between 0 and 1, such as 0.95")
    data, _ = ask(model, y, lengths, inputs, states, weights)
    method = method_for(model)
    free = _free(model.parts)

    def objective() -> Tensor:
        log_prob = run(model, method, data).log_prob
        assert log_prob is not None
        return total(log_prob, None, data.weights) + model.log_prior()

    names, values = [], []
    label = getattr(model.emission, "label", str)
    moved = {id(p) for p in model.transition.parameters()}
    for part_name, part in zip(("initial", "transition", "emission"), model.parts, strict=True):
        for name, value in natural(part, moved if part is model.initial else ()).items():
            names.append((label(f"{part_name}.{name}"), name.rpartition(".")[2]))
            values.append(value)
    remarks = notes(model, None)
    if free:
        matrix = _jacobian(values, free)
        with torch.enable_grad():
            basis = _basis(_jacobian([_regular(name, v) for (_, name), v in zip(names, values, strict=True)], free))
        information = _information(objective, free, basis)
        sizes, vectors = torch.linalg.eigh(information)
        sound = sizes > 1e-9 * sizes.abs().max().clamp_min(1e-300)
        directions = basis @ vectors
        spread = matrix @ directions
        variance = (spread[:, sound].square() / sizes[sound]).sum(1)
        flat = spread[:, ~sound].norm(dim=1) > 1e-6 * matrix.norm(dim=1)
        variance = torch.where(flat, torch.nan, variance)
        if bool((~sound).any()):
            remarks.append(
                f"the log-likelihood does not curve downwards in {int((~sound).sum())} of {len(sizes)} directions: no "
                "standard error where - stands (a boundary, an unused state, or a fit that has not converged)"
            )
        errors = list(variance.sqrt().split([v.numel() for v in values]))
        count = basis.shape[1]
    else:
        errors, count = [v.new_full((v.numel(),), torch.nan) for v in values], 0
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    fields = ("name", "index", "estimate", "error", "low", "high", "note")
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    for (full, name), value, error in zip(names, values, errors, strict=True):
        for i, (x, e) in enumerate(zip(value.detach().reshape(-1).tolist(), error.tolist(), strict=True)):
            place = _place(i, tuple(value.shape))
            if name == "covariance" and place[-1] > place[-2]:
                continue  # the other triangle
            boundary = name in ("variance", "covariance") and not x < 0 and e > BOUNDARY * x
            known = math.isfinite(e) and e > 0 and not boundary
            low, high = _interval(x, e, z, _scale(name, value, place)) if known else (None, None)
            note = "on the boundary" if boundary else ""
            row = (full, ",".join(map(str, place)), x, e if known else None, low, high, note)
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    with torch.no_grad():
        log_prob = run(model, method, data).log_prob
    assert log_prob is not None
    return Summary(columns, float(weighted(log_prob, data.weights).sum()), observations(data), count, level, remarks)


def _place(i: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index: list[int] = []
    for n in reversed(shape):
        i, rest = divmod(i, n)
        index.append(rest)
    return tuple(reversed(index))


def _scale(name: str, value: Tensor, place: tuple[int, ...]) -> str:
    """On which scale the interval is symmetric."""
    if name in ("probs", "persistence"):
        return "logit"
    if name == "covariance":
        return "log" if place[-1] == place[-2] else "plain"
    plain = name in SIGNED or isinstance(value, torch.nn.Parameter) or bool((value <= 0).any())
    return "plain" if plain else "log"


def _interval(x: float, error: float, z: float, scale: str) -> tuple[float, float]:
    if scale == "logit" and 0 < x < 1:
        centre, half = math.log(x / (1 - x)), z * error / (x * (1 - x))
        low, high = (1 / (1 + math.exp(-min(max(v, -700), 700))) for v in (centre - half, centre + half))
        return low, high
    if scale == "log":
        factor = math.exp(min(z * error / x, 700))
        return x / factor, x * factor
    return x - z * error, x + z * error


def _information(objective: Any, free: list[Tensor], basis: Tensor) -> Tensor:
    """Minus the second derivative along the basis, (r, r), by two gradients a direction."""
    start = [p.detach().clone() for p in free]
    sizes = [p.numel() for p in free]

    def gradient(direction: Tensor, step: float) -> Tensor:
        with torch.no_grad():
            for p, x, d in zip(free, start, direction.split(sizes), strict=True):
                p.copy_(torch.where(x.isfinite(), x + step * d.view_as(x).to(x), x))
        with torch.enable_grad():
            found = torch.autograd.grad(objective(), free, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in found]).double().nan_to_num(0.0)

    try:
        rows = []
        for direction in basis.mT:
            step, row = 1e-4, basis.new_zeros(basis.shape[1])
            for _ in range(2):
                row = (gradient(direction, -step) - gradient(direction, step)) @ basis / (2 * step)
                better = 1e-3 / math.sqrt(max(abs(float(row @ (basis.mT @ direction))), 1e-8))
                if 0.1 < better / step < 10:
                    break
                step = better
            rows.append(row)
    finally:
        with torch.no_grad():
            for p, x in zip(free, start, strict=True):
                p.copy_(x)
    matrix = torch.stack(rows) if rows else basis.new_zeros(0, 0)
    return (matrix + matrix.mT) / 2
