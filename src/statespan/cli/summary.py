"""What a fitted model looks like, in a terminal."""

from typing import Any

import numpy as np

from statespan.cli.screen import cell, console, tabulate
from statespan.tables import Data

FEW = 3
"""Symbols a state is described by."""
MOST_STATES = 20


def criteria(model: Any, data: Data) -> dict[str, float]:
    """Log-likelihood, free parameters, AIC, BIC (n is the number of observed steps) and the score of a step."""
    import torch

    log_prob = float(model.log_prob(data.y(model.emission.event)).sum())
    steps = int((~np.isnan(data.values).all(1)).sum())
    with torch.enable_grad():
        free = parameters(model)
    model.requires_grad_(False)
    return {
        "parameters": free,
        "observed": steps,
        "log_prob": log_prob,
        "log_prob_per_step": log_prob / max(steps, 1),
        "AIC": 2 * free - 2 * log_prob,
        "BIC": free * float(np.log(max(steps, 1))) - 2 * log_prob,
    }


def parameters(model: Any) -> int:
    """How many numbers a fit is free to choose.

    Numbers that nothing depends on (above the diagonal of a triangle) do not count, and a row of numbers whose softmax
    is taken counts one less than it has: the gradient of whatever it says sums to zero. Zeros that a fit found count.
    """
    return sum(_free(part, said) for part, said in zip(model.parts, _said(model), strict=True))


def _said(model: Any) -> list[Any]:
    """What each part says of its distribution, as trees of tensors with a graph."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    initial, transition, emission = model.parts
    start = initial.probs() if hasattr(initial, "probs") else initial.gaussian(1)
    move = transition.constants() if hasattr(transition, "constants") else transition.affine(None)
    if hasattr(emission, "affine"):
        return [start, move, emission.affine(None)]
    with torch.no_grad():
        y = model.sample(n=1, length=64, seed=0)[1].transpose(0, 1)
    return [start, move, emission.log_likelihood(y, None, None, emission.constants())]


def _free(part: Any, said: Any) -> int:
    """Free numbers of one part, by the gradient of a random function of what it says."""
    import torch

    from statespan.tree import leaves

    generator = torch.Generator().manual_seed(0)
    tensors = [x for x in leaves(said) if x.requires_grad]
    value = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in tensors)
    own = [p for p in part.parameters() if p.requires_grad]
    if not tensors:
        return 0
    total = 0
    for gradient in torch.autograd.grad(value, own, allow_unused=True):  # type: ignore[arg-type]
        if gradient is None:
            continue
        gradient = gradient.nan_to_num(0.0).double()
        size = gradient.abs().sum().clamp_min(1e-300)
        normalised = [axis for axis in range(gradient.dim()) if gradient.sum(axis).abs().sum() < 1e-9 * size]
        if normalised and gradient.shape[normalised[-1]] > 1:
            total += gradient.numel() - gradient.sum(normalised[-1]).numel()
        else:
            total += int((gradient != 0).sum())
    return total


def show(model: Any, data: Data) -> None:
    """Print the states, what they emit, and how well the model fits."""
    screen = console()
    rows = len(data.values)
    gaps = int(np.isnan(data.values).sum())
    said = f"{data.path}: {len(data.ends):,} sequence{'s' if len(data.ends) > 1 else ''}, {rows:,} steps"
    said += f", {gaps:,} missing" if gaps else ""
    screen.print(f"{said}; {', '.join(data.columns.names)}\n", markup=False, soft_wrap=True)
    screen.print(tabulate(*_describe(model, data)))
    values = criteria(model, data)
    screen.print(
        f"\nlog-likelihood {values['log_prob']:,.2f} ({values['log_prob_per_step']:.4f} a step), "
        f"{values['parameters']:,} parameters, AIC {values['AIC']:,.1f}, BIC {values['BIC']:,.1f}",
        markup=False,
    )


def _describe(model: Any, data: Data) -> tuple[list[str], list[list[Any]]]:
    """A row a state: its share of the steps, how long it stays, what it emits."""
    posterior = model.smooth(data.y(model.emission.event))
    if "probs" not in posterior.values:
        return _coordinates(model, data, posterior)
    probs = np.concatenate([x.numpy() for x in posterior.probs])
    share = probs.mean(0)
    stays = _stays(model)
    emitted = _emitted(model, data)
    header = ["state", "share", *(["stays"] if stays is not None else []), *emitted]
    rows: list[list[Any]] = []
    for k in range(min(len(share), MOST_STATES)):
        stay = [] if stays is None else ["for good" if stays[k] > len(probs) else f"{stays[k]:.3g} steps"]
        rows.append([str(k), f"{100 * share[k]:.1f} %", *stay, *(column[k] for column in emitted.values())])
    if len(share) > MOST_STATES:
        rows.append([f"and {len(share) - MOST_STATES} more"] + [""] * (len(header) - 1))
    return header, rows


def _stays(model: Any) -> Any:
    """How long a state lasts on average, 1 / (1 - A_kk)."""
    table = getattr(model.transition, "probs", None)
    if table is None:
        return None
    with np.errstate(divide="ignore"):
        return 1 / (1 - np.diagonal(table.detach().numpy()))


def _emitted(model: Any, data: Data) -> dict[str, list[str]]:
    """By column, what each state emits: mean and standard deviation, or the likeliest symbols."""
    import torch

    states = model.emission.states
    with torch.no_grad():
        each = model.emission.mixture(torch.eye(states, dtype=torch.float64), None, model.emission.constants())
    names, words = data.columns.names, data.columns.words
    if hasattr(each, "probs"):
        return {names[0]: [_likeliest(row, words.get(names[0])) for row in each.probs.numpy()]}
    mean, deviation = each.mean.numpy().reshape(states, -1), each.variance.sqrt().numpy().reshape(states, -1)
    return {
        name: [f"{cell(float(m))} ± {cell(float(s))}" for m, s in zip(mean[:, c], deviation[:, c], strict=True)]
        for c, name in enumerate(names)
    }


def _likeliest(probs: Any, words: Any) -> str:
    """The likeliest symbols of a state, with their probability."""
    order = np.argsort(-probs, kind="stable")[:FEW]
    return ", ".join(f"{words[v] if words else v} {100 * probs[v]:.0f} %" for v in order if probs[v] >= 0.005)


def _coordinates(model: Any, data: Data, posterior: Any) -> tuple[list[str], list[list[Any]]]:
    """A row a coordinate of a state of numbers: where it has been, and how each column follows it."""
    mean = np.concatenate([x.numpy() for x in posterior.mean])
    loadings = model.emission.matrix.detach().numpy()
    header = ["coordinate", "mean", "sd", *(f"{name} per unit" for name in data.columns.names)]
    return header, [
        [str(d), float(mean[:, d].mean()), float(mean[:, d].std()), *map(float, loadings[:, d])]
        for d in range(mean.shape[1])
    ]
