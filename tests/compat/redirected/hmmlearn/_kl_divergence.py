"""hmmlearn's private divergences: the drop-in's where it needs them, torch's for the others."""

import numpy as np
import torch
from torch.distributions import Gamma, MultivariateNormal, Normal, kl_divergence

from statespan.compat.hmmlearn._variational import wishart_divergence as kl_wishart_distribution
from statespan.compat.hmmlearn.base import divergence as kl_dirichlet

__all__ = [
    "kl_dirichlet",
    "kl_gamma_distribution",
    "kl_multivariate_normal_distribution",
    "kl_normal_distribution",
    "kl_wishart_distribution",
]


def _float(*values):
    return (torch.as_tensor(np.asarray(x, dtype=float)) for x in values)


def kl_normal_distribution(mean_q, variance_q, mean_p, variance_p):
    mean_q, variance_q, mean_p, variance_p = _float(mean_q, variance_q, mean_p, variance_p)
    return kl_divergence(Normal(mean_q, variance_q.sqrt()), Normal(mean_p, variance_p.sqrt())).item()


def kl_multivariate_normal_distribution(mean_q, covar_q, mean_p, covar_p):
    mean_q, covar_q, mean_p, covar_p = _float(mean_q, covar_q, mean_p, covar_p)
    return kl_divergence(MultivariateNormal(mean_q, covar_q), MultivariateNormal(mean_p, covar_p)).item()


def kl_gamma_distribution(b_q, c_q, b_p, c_p):
    b_q, c_q, b_p, c_p = _float(b_q, c_q, b_p, c_p)
    return kl_divergence(Gamma(b_q, c_q), Gamma(b_p, c_p)).item()
