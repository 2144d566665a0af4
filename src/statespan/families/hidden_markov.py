"""Hidden Markov models by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError, brief
from statespan.model import StateSpace
from statespan.part import Part, seeded
from statespan.parts.durations import FreeDurations, SemiMarkov
from statespan.parts.emissions import stochastic
from statespan.parts.factorial import Factorial, FactorialStart
from statespan.parts.finite import Dense
from statespan.parts.initial import Leading, Start
from statespan.parts.rows import as_fixed, held_entries


def hmm(
    states: int | None = None,
    emission: Any = None,
    initial: Any = None,
    transition: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A hidden Markov model: p(z_1) product of p(z_t | z_{t-1}) product of p(y_t | z_t).

    Give the number of states, or the parameters themselves, or parts.

    Args:
        states: K; needed unless the emission or a given table says it.
        emission: an emission part, such as `Categorical(symbols)` or `Gaussian(dim)`.
        initial: (K,) probabilities to start from, or an initial part. With NaN (or None) in it, the numbers are held
            and only the NaN entries are learnt.
        transition: (K, K) probabilities, `transition[i, j]` is p(next = j | now = i), or a transition part. A zero
            stays; with NaN (or None) in it, the numbers are held and only the NaN entries are learnt.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree, rows that do not sum to one.

    Source:
        Rabiner 1989.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> model.filter([0, 1, 2]).probs.shape
        torch.Size([3, 2])
    """
    if emission is None:
        raise StatespanError("hmm needs an emission, such as ss.Categorical(symbols=10) or ss.Gaussian(dim=2)")
    if not isinstance(emission, nn.Module):
        raise StatespanError(f"hmm: emission={brief(emission)} is no part; give an instance, as ss.Gaussian(dim=2)")
    _check_whole(states)
    given_initial, given_transition = None, None
    if _is_table(initial):
        initial, given_initial = _held_or_given(initial, "hmm(initial=)", 1, Start)
    if _is_table(transition):
        transition, given_transition = _held_or_given(transition, "hmm(transition=)", 2, Dense)
    sizes = {
        "states=": states,
        "emission": getattr(emission, "states", None),
        "initial": len(given_initial) if given_initial is not None else getattr(initial, "states", None),
        "transition": len(given_transition) if given_transition is not None else _public_states(transition),
    }
    if getattr(transition, "owners", None) is not None and sizes["initial"] == getattr(transition, "states", None):
        sizes.pop("initial")
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise StatespanError(f"hmm: the number of states differs: {', '.join(f'{n} {k}' for n, k in known.items())}")
    if not known and (initial is None or transition is None):
        raise StatespanError("hmm needs states=K, the number of hidden states")
    k = next(iter(known.values()), 0)
    if known and k < 1:
        raise StatespanError(f"hmm: states={k}; use at least one")
    with seeded(seed):
        start = _sized(Start(k) if initial is None else initial, k)
        move = _sized(Dense(k) if transition is None else transition, k)
        model = StateSpace(_start_of(start, move), move, _sized(emission, k))
    model = model.to(device=device, dtype=dtype or torch.float64)
    if given_initial is not None:
        start.set_probs(given_initial)
    if given_transition is not None:
        move.set_probs(given_transition)
    return model


def semi_markov(
    states: int | None = None,
    longest: int = 20,
    emission: Any = None,
    durations: Any = None,
    initial: Any = None,
    transition: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A hidden semi-Markov model: each state lasts as long as a law of its own says, then another one follows.

    p(z, y) = p(first state) x product over segments of p(d | k) p(next | k) x product of p(y_t | z_t); the last
    segment, which may go on, counts by p(duration >= d). `ss.ages` gives the posterior of how long a state has lasted.

    Args:
        states: K.
        longest: D, the longest duration; each step costs K D + K^2.
        emission: an emission part, such as `Categorical(symbols)` or `Gaussian(dim)`.
        durations: the law: `FreeDurations`, `PoissonDurations`, `NegativeBinomialDurations`, `GeometricDurations`, or
            one of your own; None is any law on 1..`longest`. Where it is given, it says the longest itself.
        initial: (K,) probabilities of the first state, or an initial part; `Stationary()` for a series cut out of a
            longer one.
        transition: (K, K) probabilities of the next state, or a part; None is free and never stays.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree.

    Source:
        Rabiner 1989, section IV.D; Guedon 2003.

    Example:
        >>> import statespan as ss
        >>> model = ss.semi_markov(states=2, longest=6, emission=ss.Categorical(3), seed=0)
        >>> model.smooth([0, 1, 1, 2]).probs.shape
        torch.Size([4, 2])
    """
    law = FreeDurations(longest=longest) if durations is None else durations
    given = None
    if _is_table(transition):
        transition, given = _held_or_given(transition, "semi_markov(transition=)", 2, Dense)
        if given is not None:
            elsewhere = torch.where(torch.eye(len(given), dtype=torch.bool) & (given == 0), 0.0, torch.nan)
            transition = Dense(len(given), fixed=elsewhere)
    known = [states, getattr(transition, "states", None), getattr(law, "states", None)]
    known += [getattr(emission, "states", None)]
    k = next((n for n in known if n is not None), None)
    with seeded(seed):
        chain = SemiMarkov(k, law, transition)
    model = hmm(k, emission, initial, chain, dtype, device, seed)
    if given is not None:
        model.transition.jumps.set_probs(given)
    return model


def factorial_hmm(
    states: Sequence[int] | None = None,
    emission: Any = None,
    initial: Any = None,
    transition: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A factorial hidden Markov model: several chains that move by themselves and are seen together.

    p(z, y) = product over chains of p(z of the chain) x product of p(y_t | z_t of all chains). The state is the joint
    one, the last chain fastest: `model.transition.split` takes paths apart, `.marginals` probabilities, and `.join`
    puts states together. Inference is exact, one push a chain; K = the product of `states` joint states are kept. Where
    those are too many, `StructuredMeanField()` answers approximately, with a bound of log p(y).

    Args:
        states: K_1, K_2, ..., how many each chain has.
        emission: an emission part of the joint state, such as `Gaussian(dim)`, sized to K; or one to which each chain
            adds its own, `AdditiveGaussian(dim)` or `AdditivePoisson(dim)`.
        initial: a list of (K_c,) probabilities, or of initial parts; `Stationary()`; or an initial part of the joint.
        transition: a list of (K_c, K_c) probabilities, or of matrix transition parts.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree.

    Source:
        Ghahramani and Jordan 1997.

    Example:
        >>> import statespan as ss
        >>> model = ss.factorial_hmm(states=[2, 3], emission=ss.Categorical(4), seed=0)
        >>> [p.shape[-1] for p in model.transition.marginals(model.smooth([0, 1, 3]).probs)]
        [2, 3]
    """
    count = next((len(x) for x in (states, transition) if x is not None), 0)
    if not count:
        raise StatespanError("factorial_hmm needs states=[K_1, K_2, ...], how many states each chain has")
    sizes: list[Any] = [None] * count if states is None else list(states)
    moves: list[Any] = sizes if transition is None else list(transition)
    if len(moves) != count:
        raise StatespanError(f"factorial_hmm: transition= has {len(moves)} chains, states= {count}")
    given: list[tuple[Any, Tensor]] = []
    with seeded(seed):
        moves = [_chain(move, f"factorial_hmm(transition=[{i}])", 2, Dense, given) for i, move in enumerate(moves)]
        chains = Factorial([_sized(move, size) for move, size in zip(moves, sizes, strict=True)])
        if states is not None and list(states) != chains.sizes:
            raise StatespanError(f"factorial_hmm: states={list(states)}, and the transitions have {chains.sizes}")
        if initial is None:
            initial = FactorialStart(chains.sizes)
        elif not isinstance(initial, nn.Module):
            each = [_chain(x, f"factorial_hmm(initial=[{i}])", 1, Start, given) for i, x in enumerate(initial)]
            initial = FactorialStart([_sized(x, size) for x, size in zip(each, chains.sizes, strict=True)])
    with seeded(seed):
        emission = emission.of_chains(chains.sizes) if hasattr(emission, "of_chains") else emission
    model = hmm(chains.states, emission, initial, chains, dtype, device, seed)
    for part, probs in given:
        part.set_probs(probs)
    return model


def _check_whole(states: Any) -> None:
    if states is not None and not hasattr(states, "__index__"):
        raise StatespanError(f"hmm: states={states!r} is no whole number; give states=3, say")


def _chain(x: Any, name: str, rank: int, part: Callable[..., Any], given: list[tuple[Any, Any]]) -> Any:
    """One chain's part: as it is, of a size, or from a table, which is then to be set."""
    if isinstance(x, (int, nn.Module)):
        return part(x) if isinstance(x, int) else x
    held, table = _held_or_given(x, name, rank, part)
    if held is None:
        held = part(len(table))
        given.append((held, table))
    return held


def _held_or_given(table: Any, name: str, rank: int, part: Callable[..., Any]) -> tuple[Any, Any]:
    """A part that holds the numbers of a table with NaN; or None and the table, for the part to start from."""
    numbers = as_fixed(table)
    if rank == numbers.dim() == 2 and numbers.shape[0] != numbers.shape[1]:
        raise StatespanError(f"{name} is {tuple(numbers.shape)}; it must be square")
    if numbers.dim() == rank and bool(numbers.isnan().any()):
        return part(len(numbers), fixed=held_entries(numbers, tuple(numbers.shape), name)), None
    return None, stochastic(table, name, rank)


def _public_states(transition: Any) -> int | None:
    """How many states a transition tells apart, if it knows."""
    return None if getattr(transition, "states", None) is None else transition.public_states


def _sized(part: Any, states: int | None) -> Any:
    """The part for so many states, if it can be told and they are known."""
    return part.sized(states) if states is not None and isinstance(part, Part) else part


def _start_of(initial: Any, transition: Any) -> Any:
    """The start as the transition needs it: its own stationary law, or over the chain's first states."""
    if hasattr(initial, "following"):
        return initial.following(transition)
    if transition.owners is not None and initial.states != transition.states:
        return Leading(initial, transition.states)
    return initial


def _is_table(x: Any) -> bool:
    """Whether a user gave numbers rather than a part."""
    return x is not None and not isinstance(x, nn.Module)
