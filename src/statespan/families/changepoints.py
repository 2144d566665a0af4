"""Models of series that fall into segments, and what their segments look like in hindsight."""

from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import nn

from statespan.errors import StatespanError, brief
from statespan.methods.run_lengths import RunLengthFilter
from statespan.model import StateSpace
from statespan.parts.renewal import ConstantHazard, Renewal, SegmentStart
from statespan.parts.segments import GaussianSegment, Segment
from statespan.verbs import ask


def changepoints(
    segment: Any = None,
    hazard: Any = 0.01,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> StateSpace:
    r"""A series that falls into segments: Bayesian changepoint detection, online and in hindsight, exact.

    p(segments, y) = product over segments of p(their length) p(their observations), the parameters of each segment
    summed out by a conjugate prior. The state is the run length r_t, how many earlier steps the segment of step t has
    had: 0 where a segment begins.

    - `model.filter(y).probs` (N, T, R): p(r_t = r | y_1..t); `model.smooth(y).probs[..., 0]`: the probability that a
      segment begins at each step, given everything;
    - `model.decode(y)`: the run lengths of the likeliest segmentation, 0 where a segment begins;
    - `ss.segment_means(model, y)`: the mean of the segments over time; `model.forecast`, with quantiles by formula;
      `model.stream()`, one observation at a time; `states=` are known run lengths, -1 unknown;
    - `model.fit(y, by=ss.LBFGS(), restarts=2)`: prior and hazard by maximum likelihood, from where they are and from
      where the data lie; `hold=["transition"]` leaves the hazard as it is.

    The answers are exact, and cost the square of the length; what would keep more than 4 GB is refused. For a long
    series `method=ss.RunLengthFilter(keep=200)` follows the likeliest run lengths alone: 10,000 steps take less than a
    second, a step of a stream always the same, and `.exact` is False; what was dropped is in `.values["lost"]`.

    Args:
        segment: what a segment emits: `GaussianSegment`, `GaussianMeanSegment` (one variance for all),
            `PoissonSegment`, `BernoulliSegment`, `RegressionSegment`, or a `Segment` of your own; None: Gaussian.
        hazard: the probability that a segment ends after a step, or a law of how long segments last, such as
            `ss.NegativeBinomialDurations(longest=200)`.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.

    Raises:
        StatespanError: a hazard outside 0..1, a law for several states.

    Source:
        Adams and MacKay, "Bayesian online changepoint detection", 2007; Fearnhead 2006.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.PoissonSegment(scale=5.0), hazard=1 / 20)
        >>> y = [1, 0, 2, 1, 12, 9, None, 14]
        >>> model.decode(y).tolist()
        [0, 1, 2, 3, 0, 1, 2, 3]
        >>> model.forecast(y, steps=2).quantile([0.1, 0.9])[:, 0, 0].tolist()
        [6.0, 16.0]
    """
    segment = GaussianSegment() if segment is None else segment
    if not isinstance(segment, Segment):
        raise StatespanError(f"changepoints(segment={brief(segment)}) is no segment; give one, as ss.PoissonSegment()")
    if isinstance(hazard, Real):
        hazard = ConstantHazard(float(hazard))
    elif not isinstance(hazard, nn.Module):
        raise StatespanError(f"changepoints(hazard={brief(hazard)}): give a probability, or a law of durations")
    model = StateSpace(SegmentStart(), Renewal(hazard), segment)  # type: ignore[arg-type]
    return model.to(device=device, dtype=dtype or torch.float64)


class SegmentMeans(NamedTuple):
    """E[y_t | the parameters of its segment] at each step: its posterior mean and standard deviation, (N, T, D)."""

    mean: Any
    deviation: Any


def segment_means(
    model: StateSpace, y: Any, lengths: Any = None, inputs: Any = None, method: Any = None
) -> SegmentMeans:
    """The mean of a series that falls into segments, averaged over where the segments may begin and end.

    Args:
        model: what `ss.changepoints` made.
        y: the sequences, as the model's verbs take them.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.
        method: a `RunLengthFilter` that keeps few run lengths, for a long series.

    Returns:
        Mean and standard deviation, in the question's form.

    Raises:
        StatespanError: another kind of model.

    Source:
        Fearnhead 2006, section 3.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.GaussianMeanSegment(spread=25.0), hazard=0.1)
        >>> ss.segment_means(model, [1.1, 0.8, 1.0, 9.1, 8.8, 9.0]).mean[:, 0].round().tolist()
        [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]
    """
    from statespan.methods import check

    method = check(RunLengthFilter() if method is None else method, model)
    data, layout = ask(model, y, lengths, inputs)
    with torch.no_grad():
        mean, variance = method.segment_means(model, method.constants(model), data)
    return SegmentMeans(layout.steps(mean), layout.steps(variance.sqrt()))
