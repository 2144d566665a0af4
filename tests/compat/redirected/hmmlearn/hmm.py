from statespan.compat.hmmlearn.hmm import *  # noqa: F403
