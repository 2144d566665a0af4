"""hmmlearn's private C functions by statespan's recursions, so that its numbers from the literature test these."""

import numpy as np
import torch

import statespan as ss
from statespan.compat.hmmlearn._chain import Chain, batches
from statespan.compat.hmmlearn._parts import LogFrames


def _ask(startprob, transmat, log_frames):
    chain = Chain(startprob, transmat, LogFrames(len(startprob)))
    return chain, batches(torch.as_tensor(log_frames), None, None, len(startprob))


def forward_scaling(startprob, transmat, frames):
    chain, data = _ask(startprob, transmat, np.log(frames))
    trace = ss.run(chain.model, chain.method, data[0].data, keep=("filtered", "log_prob"), constants=chain.constants)
    each = trace.log_prob[:, 0].numpy()
    return each.sum(), trace.filtered.probs[:, 0].numpy(), np.exp(-each)


def forward_log(startprob, transmat, log_frames):
    log_prob, filtered, factors = forward_scaling(startprob, transmat, np.exp(log_frames))
    return log_prob, np.log(filtered) - np.log(factors).cumsum()[:, None]


def backward_log(startprob, transmat, log_frames):
    """Posterior = forward times backward over p(y)."""
    log_prob, forward = forward_log(startprob, transmat, log_frames)
    chain, data = _ask(startprob, transmat, log_frames)
    return np.log(chain.smooth(data, len(log_frames))[1]) + log_prob - forward


def backward_scaling(startprob, transmat, frames, scaling_factors):
    return np.exp(backward_log(startprob, transmat, np.log(frames))) * scaling_factors[::-1].cumprod()[::-1, None]


def viterbi(startprob, transmat, log_frames):
    chain, data = _ask(startprob, transmat, log_frames)
    return chain.decode(data, len(log_frames))
