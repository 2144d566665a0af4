"""Expected logarithms and divergences of hmmlearn's normal-Wishart posteriors, one of D dimensions for every kind."""

import numpy as np
from scipy.special import digamma, gammaln


def expected_log_determinant(dof: np.ndarray, scale: np.ndarray) -> np.ndarray:
    r"""E log |W| for W ~ Wishart(dof, scale^-1): sum of digamma((dof - i) / 2) + D log 2 - log |scale|.

    Source:
        Bishop 2006, equation B.81.
    """
    d = scale.shape[-1]
    halves = (np.asarray(dof)[..., None] - np.arange(d)) / 2
    return digamma(halves).sum(-1) + d * np.log(2) - np.linalg.slogdet(scale)[1]


def wishart_divergence(dof_q: np.ndarray, scale_q: np.ndarray, dof_p: np.ndarray, scale_p: np.ndarray) -> np.ndarray:
    r"""KL(q || p) of Wishart distributions of precisions, (..., ) degrees of freedom and inverse scales (..., D, D).

    (nu_q - nu_p) / 2 E log|W| - nu_q D / 2 + nu_q / 2 tr(B_p B_q^-1) + log Z_p - log Z_q.

    Source:
        Penny 2001; Ji, Krishnapuram and Carin, IEEE PAMI 28(4), 2006.
    """
    d = scale_p.shape[-1]
    trace = np.trace(np.linalg.solve(scale_q, scale_p), axis1=-2, axis2=-1)
    expected = (dof_q - dof_p) / 2 * expected_log_determinant(dof_q, scale_q)
    return expected + dof_q / 2 * (trace - d) + _log_partition(dof_p, scale_p) - _log_partition(dof_q, scale_q)


def _log_partition(dof: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Log of what a Wishart density is divided by."""
    d, dof = scale.shape[-1], np.asarray(dof)
    halves = (dof[..., None] - np.arange(d)) / 2
    constant = d * (d - 1) / 4 * np.log(np.pi) + dof * d / 2 * np.log(2)
    return constant - dof / 2 * np.linalg.slogdet(scale)[1] + gammaln(halves).sum(-1)


def normal_divergence(
    mean_q: np.ndarray, beta_q: np.ndarray, mean_p: np.ndarray, beta_p: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    r"""KL of N(mean_q, (beta_q P)^-1) from N(mean_p, (beta_p P)^-1), (K,) with P (K, D, D).

    (D log(beta_q / beta_p) + D beta_p / beta_q - D + beta_p delta' P delta) / 2.
    """
    d, delta = mean_q.shape[-1], mean_q - mean_p
    spread = np.einsum("ki,kij,kj->k", delta, precision, delta)
    return 0.5 * (d * (np.log(beta_q / beta_p) + beta_p / beta_q - 1) + beta_p * spread)
