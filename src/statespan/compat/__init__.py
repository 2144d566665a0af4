"""Statespan under interfaces that people know: `compat.hmmlearn` is a drop-in, `compat.sklearn` an estimator."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("statespan.compat needs scikit-learn: pip install 'statespan[sklearn]'") from error
