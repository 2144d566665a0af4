from statespan.compat.hmmlearn.utils import *  # noqa: F403
