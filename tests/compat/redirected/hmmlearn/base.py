from statespan.compat.hmmlearn.base import *  # noqa: F403
