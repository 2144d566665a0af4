"""Pictures of answers. matplotlib is imported when the first one is drawn.

Every function draws on the axes it is given, or on new ones, and returns them; `axes.figure.savefig(path)` writes them.
"""

from statespan.plots.changepoints import plot_changepoints
from statespan.plots.checking import plot_auxiliary, plot_check, plot_cusum, plot_nis
from statespan.plots.checks import plot_criteria, plot_curves, plot_surprise
from statespan.plots.components import plot_components
from statespan.plots.forecast import plot_forecast, plot_imputed
from statespan.plots.parts import plot_emissions, plot_model, plot_transitions
from statespan.plots.posterior import plot_paths, plot_posterior
from statespan.plots.style import BANDS, COLOURS, LINES

__all__ = [
    "BANDS",
    "COLOURS",
    "LINES",
    "plot_auxiliary",
    "plot_changepoints",
    "plot_check",
    "plot_components",
    "plot_criteria",
    "plot_curves",
    "plot_cusum",
    "plot_emissions",
    "plot_forecast",
    "plot_imputed",
    "plot_model",
    "plot_nis",
    "plot_paths",
    "plot_posterior",
    "plot_surprise",
    "plot_transitions",
]
