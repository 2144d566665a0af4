"""A state space: three parts, and the verbs as its methods."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from statespan import verbs
from statespan.answers import Forecast, Posterior
from statespan.errors import StatespanError
from statespan.method import Method
from statespan.part import Part
from statespan.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from statespan.fit import Fitter


class StateSpace(Part):
    r"""p(y) = sum over z of p(z_1) product over t of p(z_t | z_{t-1}, u_t) p(y_t | z_t, u_t).

    Three parts make a model: how the state starts, how it moves, what it emits. A state space knows nothing of
    inference; each verb below picks a method that accepts the parts, and `method=` overrides the choice.

    `y` may be one sequence, (T,) of symbols or (T, D) of vectors; a list of them of any lengths; a padded batch
    (N, T) or (N, T, D) with `lengths=`; NumPy, torch or pandas. NaN, None, or -1 for a symbol, is missing. Answers
    follow the question: one sequence in, no batch axis out; a padded batch, padded; a list, a list. Times start at 0,
    logarithms are natural, `inputs=` has the same forms as y, and `states=` are labels, -1 unknown.

    Numbers are of the parts' dtype: float32, as every nn.Module's, until `.double()`. What functions such as `ss.hmm`
    make is float64, but for the rungs. Log-probabilities are float64 always.

    Args:
        initial: p(z_1).
        transition: p(z_t | z_{t-1}).
        emission: p(y_t | z_t).

    Raises:
        StatespanError: finite parts whose numbers of states differ, or are not known.

    Source:
        Cappe, Moulines and Ryden, Inference in Hidden Markov Models 2005, section 2.2.

    Example:
        >>> import statespan as ss
        >>> model = ss.StateSpace(ss.Start(2), ss.Dense(2), ss.Categorical(3, states=2))
        >>> model.log_prob([0, 2, None, 1]).shape
        torch.Size([])
    """

    initial: Any
    transition: Any
    emission: Any

    def __init__(self, initial: nn.Module, transition: nn.Module, emission: nn.Module):
        super().__init__()
        self.initial, self.transition, self.emission = initial, transition, emission
        sizes = {type(part).__name__: part.states for part in self.parts if hasattr(part, "states")}
        if getattr(transition, "owners", None) is not None and hasattr(emission, "states"):
            sizes.pop(type(emission).__name__)
            if emission.states != transition.public_states:
                raise StatespanError(
                    f"{type(emission).__name__} has {emission.states} states where {type(transition).__name__} tells "
                    f"{transition.public_states} apart"
                )
        for name, size in sizes.items():
            if size is None:
                raise StatespanError(f"{name} does not know its number of states; give it states=, or use ss.hmm")
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise StatespanError(f"the number of states differs: {said}")

    def __add__(self, other: "StateSpace") -> "StateSpace":
        """The model of the sum of two structural series: `ss.level() + ss.seasonal(12)`."""
        from statespan.families.structural import add

        return add(self, other)

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """The initial, the transition and the emission."""
        return self.initial, self.transition, self.emission

    @property
    def autoregressive(self) -> bool:
        """Whether what was observed acts on what comes next other than through the state."""
        return self.transition.autoregressive or getattr(self.emission, "lags", 0) > 0

    def recipe(self) -> tuple[tuple, dict[str, Any]]:
        """The three parts as they are now."""
        return self.parts, {}

    def log_prior(self) -> Any:
        """The log-density of the parameters under the parts' priors, up to a constant; 0 where there are none."""
        return sum(part.log_prior() for part in self.parts)

    def log_prob(
        self,
        y: Any,
        lengths: Any = None,
        inputs: Any = None,
        states: Any = None,
        method: Method | None = None,
        belief: Any = None,
    ) -> Tensor:
        """Natural log-probability of the observed entries of each sequence.

        Its gradient is exact inference wherever the method is: `-model.log_prob(y).mean()` is a loss.

        Args:
            y: the sequences (see the class).
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            states: labelled states, -1 unknown; the answer is then of y and the labels.
            method: an inference method instead of the model's own.
            belief: a belief carried in from an earlier window.

        Returns:
            (N,) float64; for one sequence a scalar.

        Raises:
            StatespanError: the data do not fit the model, or the method does not.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> model.log_prob([0, 0, None, 1]).exp().item() < 1  # None: summed out
            True
        """
        data, layout = verbs.ask(self, y, lengths, inputs, states)
        return layout.each(verbs.log_prob(self, data, method, belief))

    def filter(
        self,
        y: Any,
        lengths: Any = None,
        inputs: Any = None,
        states: Any = None,
        method: Method | None = None,
        belief: Any = None,
    ) -> Posterior:
        """p(z_t | y_1..y_t): what was known at each moment.

        Args:
            y: the sequences (see the class).
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            states: labelled states, -1 unknown; or the states possible at each step, bool with a last axis of K.
            method: an inference method instead of the model's own.
            belief: a belief carried in from an earlier window.

        Returns:
            A `Posterior`: `.probs` (N, T, K), or `.mean` and `.covariance`, or `.samples`, or `.state`; `.log_prob`.

        Raises:
            StatespanError: the data do not fit the model, or the method does not.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> [round(p, 2) for p in model.filter([0, 0, 1]).probs[:, 0].tolist()]
            [0.89, 0.97, 0.62]
        """
        data, layout = verbs.ask(self, y, lengths, inputs, states)
        return verbs.filter(self, data, layout, method, belief)

    def smooth(
        self,
        y: Any,
        lengths: Any = None,
        inputs: Any = None,
        states: Any = None,
        method: Method | None = None,
        belief: Any = None,
        pairs: bool = False,
    ) -> Posterior:
        """p(z_t | y_1..y_T): what is known of each moment in hindsight.

        Args:
            y: the sequences (see the class).
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            states: labelled states, -1 unknown; or the states possible at each step, bool with a last axis of K.
            method: an inference method instead of the model's own.
            belief: a belief carried in from an earlier window.
            pairs: also give `.pairs`, the joint law of neighbouring states, (N, T - 1, K, K).

        Returns:
            A `Posterior`.

        Raises:
            StatespanError: the data do not fit the model, or the method does not; pairs of a method that has none.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> [round(p, 2) for p in model.smooth([0, 0, 1]).probs[:, 0].tolist()]
            [0.94, 0.93, 0.62]
        """
        data, layout = verbs.ask(self, y, lengths, inputs, states)
        return verbs.smooth(self, data, layout, method, belief, pairs)

    def decode(
        self,
        y: Any,
        k: int | None = None,
        lengths: Any = None,
        inputs: Any = None,
        states: Any = None,
        method: Method | None = None,
    ) -> Any:
        """The likeliest state path of each sequence, argmax over z of p(z, y).

        Args:
            y: the sequences (see the class).
            k: give the k best paths and their log p(z, y), best first; ties go to the lower state.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            states: labelled states, -1 unknown; or the states possible at each step, bool with a last axis of K.
            method: an inference method instead of the model's own.

        Returns:
            A list of (T_n,) integer tensors (one tensor for one sequence). With k: that list with (T_n, k), and
            log-probabilities (N, k).

        Raises:
            StatespanError: the data do not fit the model, or the method does not.
            TypeError: the state is no distribution over states; the message names the verb to use.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> model.decode([0, 0, 1, 1]).tolist()
            [0, 0, 1, 1]
        """
        data, layout = verbs.ask(self, y, lengths, inputs, states)
        return verbs.decode(self, data, layout, k, method)

    def forecast(
        self,
        y: Any,
        steps: int = 1,
        samples: int = 200,
        seed: int | None = 0,
        lengths: Any = None,
        inputs: Any = None,
        future: Any = None,
        method: Method | None = None,
        belief: Any = None,
    ) -> Forecast:
        """The distribution of what comes after each sequence.

        Args:
            y: the sequences (see the class).
            steps: how many steps ahead.
            samples: how many futures to draw, for quantiles and where no formula is known.
            seed: makes the samples repeatable.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            future: (N, steps, U) inputs to come.
            method: an inference method instead of the model's own.
            belief: a belief carried in from an earlier window.

        Returns:
            A `Forecast`: `.probs` (N, steps, V) or `.mean` (N, steps, D), `.quantile(q)`, `.samples`.

        Raises:
            StatespanError: the data do not fit the model, or the method does not; fewer than one step or sample; inputs
                to come that are missing or of another shape.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> model.forecast([0, 0], steps=2).probs[:, 0].round(decimals=2).tolist()
            [0.72, 0.67]
        """
        data, layout = verbs.ask(self, y, lengths, inputs)
        ahead = None
        verbs.check_inputs(self, future, "future")
        if future is not None:
            ahead = verbs.ahead(future, layout, steps, data.y)
        return verbs.forecast(self, data, layout, steps, samples, seed, ahead, method, belief)

    def sample(
        self,
        n: int | None = None,
        length: int = 100,
        seed: int | None = None,
        inputs: Any = None,
        method: Method | None = None,
    ) -> tuple[Tree, Tensor]:
        """Draw sequences from the model.

        Args:
            n: how many; None draws one, without a batch axis.
            length: steps.
            seed: makes the draw repeatable.
            inputs: (T, U) inputs, the same for all, or (T, N, U).
            method: an inference method instead of the model's own.

        Returns:
            States and observations, (N, T, ...).

        Raises:
            StatespanError: fewer than one step or sequence, inputs of another shape, or a start that is flat.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> states, y = model.sample(n=3, length=5, seed=0)
            >>> states.shape, y.shape
            (torch.Size([3, 5]), torch.Size([3, 5]))
        """
        return verbs.sample(self, n, length, seed, inputs, method)

    def impute(self, y: Any, lengths: Any = None, inputs: Any = None, method: Method | None = None) -> Any:
        """Y with its missing entries replaced by their posterior mean, for symbols the likeliest.

        Args:
            y: the sequences (see the class).
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            method: an inference method instead of the model's own.

        Raises:
            StatespanError: the data do not fit the model, or the method does not.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> model.impute([0, None, 0, 1, None]).tolist()
            [0, 0, 0, 1, 0]
        """
        data, layout = verbs.ask(self, y, lengths, inputs)
        return verbs.impute(self, data, layout, method)

    def sample_posterior(
        self,
        y: Any,
        n: int = 1,
        seed: int | None = None,
        lengths: Any = None,
        inputs: Any = None,
        method: Method | None = None,
    ) -> Any:
        """Draw state paths from p(z_1..z_T | y): filter forwards, sample backwards.

        Args:
            y: the sequences (see the class).
            n: how many paths of each sequence.
            seed: makes the draw repeatable.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            method: an inference method instead of the model's own.

        Returns:
            For one sequence (n, T, ...); else a list of them, one a sequence.

        Raises:
            StatespanError: the data do not fit the model, or have probability zero under it; fewer than one path; a
                method that cannot go back.

        Source:
            Fruhwirth-Schnatter 1994; Chopin and Papaspiliopoulos 2020, section 12.3.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> model.sample_posterior([0, 0, 1], n=4, seed=0).shape
            torch.Size([4, 3])
        """
        data, layout = verbs.ask(self, y, lengths, inputs)
        return verbs.sample_posterior(self, data, layout, n, seed, method)

    def stream(self, method: Method | None = None, belief: Any = None, lag: int = 0) -> verbs.Stream:
        """One observation at a time: `update(y_t)`, `belief`, `log_prob`, `surprise`, `lagged`, `forecast(steps)`.

        Args:
            method: an inference method instead of the model's own.
            belief: where to start from.
            lag: how many steps of hindsight `lagged` has.

        Raises:
            StatespanError: a negative lag, or a method that does not fit the model.

        Example:
            >>> import statespan as ss
            >>> table = [[0.9, 0.1], [0.2, 0.8]]
            >>> model = ss.hmm(transition=table, emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
            >>> stream = model.stream()
            >>> for symbol in (0, 0, 1):
            ...     belief = stream.update(symbol)
            >>> round(stream.surprise.item(), 2), stream.forecast(steps=2).probs.shape
            (1.26, torch.Size([2, 2]))
        """
        return verbs.Stream(self, method, belief, lag)

    def fit(
        self,
        y: Any,
        by: "Fitter | Sequence[Fitter] | None" = None,
        restarts: int = 1,
        seed: int | None = None,
        lengths: Any = None,
        inputs: Any = None,
        states: Any = None,
        weights: Any = None,
        hold: "Sequence[str]" = (),
        jobs: int = 1,
    ) -> "StateSpace":
        """Fit the parameters in place, and return the model.

        What is maximised is the log-likelihood plus the parts' log-priors. A parameter whose `requires_grad` is False
        is held where it is.

        Args:
            y: the sequences (see the class).
            by: `EM(...)`, `SGD(...)`, `VI(...)`, or several of them, one after another; None is EM where every part has
                a closed form, else LBFGS where inference is exact, else SGD.
            restarts: how many starts, the model as it is and others from the data; the best fit is kept, and
                `by.restarts` holds what each reached.
            seed: makes the fit repeatable.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            states: labelled states, -1 unknown; or the states possible at each step, bool with a last axis of K.
            weights: how many times each sequence counts, (N,), or each observation, as a power of its density.
            hold: parameters that stay as they are in this fit, by name: a part ("transition"), or one parameter of it
                ("emission.mean").
            jobs: processes that share the restarts; the answer does not depend on it.

        Raises:
            StatespanError: the data do not fit the model, or have probability zero under it; no fitter, or one that
                does not fit the model; `hold` names no parameter; fewer than one restart or job.

        Example:
            >>> import statespan as ss
            >>> model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
            >>> model = model.fit([0.1, -0.2, 0.0, 5.1, 4.8, 5.2], by=ss.EM(iterations=20), restarts=3, seed=0)
            >>> sorted(model.emission.mean.flatten().round().int().tolist())
            [0, 5]
        """
        from statespan.fit import fit

        data, _ = verbs.ask(self, y, lengths, inputs, states, weights)
        return fit(self, data, by, restarts, seed, hold, jobs)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write tensors (safetensors) and how to make the model again (JSON in its header); no code.

        Args:
            path: a file name, by custom `.safetensors`.

        Raises:
            StatespanError: a part that no file can hold (one made with a function), or a file that cannot be written.
        """
        from statespan.files import save

        save(self, path)
