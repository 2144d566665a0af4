"""Pictures of fitted models."""

from typing import Any

from statespan.tables import Data


def captions(data: Data, sequence: int) -> dict[str, Any]:
    """What every picture is told of the sequence that is drawn."""
    times = None if data.times is None else data.times[sequence].rename(data.columns.time)
    return {"times": times, "columns": data.columns.names, "words": data.columns.words}


def of_states(model: Any, data: Data) -> Any:
    """The states, or what the model says of the first sequence where they are not all of it."""
    from statespan.plots import parts, plot_model

    if not parts.of_states(model):
        return of_posterior(model, data)
    return plot_model(model, data.y(model.emission.event), columns=data.columns.names, words=data.columns.words)


def of_posterior(model: Any, data: Data) -> Any:
    """What the model says of the first sequence."""
    from statespan.plots import plot_posterior

    posterior = model.smooth(data.y(model.emission.event), inputs=data.u())
    return plot_posterior(posterior, 0, y=data.values[data.steps(0)], **captions(data, 0))
