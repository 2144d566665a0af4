"""Statespan under interfaces that people know.

`compat.hmmlearn` and `compat.pykalman` are drop-ins, `compat.sklearn` an estimator; the first and the last need
scikit-learn.
"""


def need_sklearn() -> None:
    """Refuse in one line where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("this drop-in needs scikit-learn: pip install 'statespan[sklearn]'") from error
