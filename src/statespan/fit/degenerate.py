"""What a user should know of a fit that went where the likelihood says little."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from statespan.parts.emissions import Gaussian
from statespan.tree import Tree


def unused_states(initial: Tree, transition: Tree, owners: Tensor | None) -> list[str]:
    """States that no more than one step is expected to have been in, from expected counts (K,) and (K, K)."""
    if not (isinstance(initial, Tensor) and isinstance(transition, Tensor)):
        return []
    if initial.dim() != 1 or transition.shape != (len(initial), len(initial)):
        return []
    visits = initial + transition.sum(0)
    if owners is not None and len(owners) == len(visits):
        visits = visits.new_zeros(int(owners.max()) + 1).index_add(0, owners, visits)
    return [
        f"state {k} is hardly used: {float(visits[k]):.3g} steps expected in it; its parameters mean little"
        for k in (visits < 1).nonzero()[:, 0].tolist()
    ]


@singledispatch
def at_bounds(part: Any) -> list[str]:
    """Parameters of a part that lie where its regularisation holds them."""
    return []


@at_bounds.register(Gaussian)
@torch.no_grad()
def _(part: Gaussian) -> list[str]:
    units = torch.ones_like(part.mean[0]) if part.units is None else part.units
    smallest = torch.linalg.eigvalsh(part.covariance / (units[:, None] * units))[:, 0]
    states = (smallest <= part.floor * (1 + 1e-6)).nonzero()[:, 0].tolist()
    floor = f"{part.floor:g}" + (" times that of all data" if bool((units < 1).any()) else "")
    return [f"state {k}: a variance is at its floor {floor}, where it would have gone to zero" for k in states]
