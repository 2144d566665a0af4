from statespan.compat.hmmlearn.vhmm import *  # noqa: F403
