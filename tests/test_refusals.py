"""Arguments of the wrong kind get one clear line; in a process of its own, where no checker of types comes first."""

import subprocess
import sys

SCRIPT = """
import statespan as ss

model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
driven = ss.hmm(2, ss.Categorical(3), transition=ss.SoftmaxTransition(2), seed=0)
calls = {
    "by='EM' is no fitter": lambda: model.fit([0, 1], by="EM"),
    "is no fitter; give an instance": lambda: model.fit([0, 1], by=ss.EM),
    "by=3 is no fitter": lambda: model.fit([0, 1], by=[ss.EM(), 3]),
    "states=2.0 is no whole number": lambda: ss.hmm(states=2.0, emission=ss.Categorical(3)),
    "states='2' is no whole number": lambda: ss.hmm(states="2", emission=ss.Categorical(3)),
    "is no part; give an instance": lambda: ss.hmm(states=2, emission=ss.Categorical),
    "emission='gaussian' is no part": lambda: ss.hmm(states=2, emission="gaussian"),
    "EM(iterations=2.5): use a whole number": lambda: ss.EM(iterations=2.5),
    "belief=3 is no belief": lambda: model.filter([0, 1], belief=3),
    "belief=3 is no belief; give": lambda: model.forecast([0, 1], belief=3),
    "inputs= is given, and no part": lambda: model.log_prob([0, 1], inputs=[[1.0], [2.0]]),
    "takes inputs; leave it out": lambda: model.stream().update(0, inputs=[1.0]),
    "future= is given, and no part": lambda: model.forecast([0, 1], future=[[1.0]]),
    "inputs= is given": lambda: model.sample(length=1, inputs=[[1.0]]),
    "future[1, 0] is not finite": lambda: driven.forecast([0], inputs=[[1.0]], steps=2, future=[[1.0], [float("nan")]]),
    "Sequences has lengths, inputs": lambda: model.log_prob(ss.Sequences(), lengths=[2]),
    "takes no weights of single steps": lambda: ss.lstm(3, 2).fit([0, 1], by=ss.SGD(epochs=1), weights=[1.0, 2.0]),
    "takes no labelled states": lambda: ss.linear_gaussian(1, 1).filter([0.1], states=[0]),
    "sample(inputs=) is (3, 1); give": lambda: driven.sample(length=2, inputs=[[1.0]] * 3),
    "cannot write": lambda: model.save("a\\0b"),
}
for said, call in calls.items():
    try:
        call()
    except ss.StatespanError as error:
        assert said in str(error) and "\\n" not in str(error), error
    else:
        raise SystemExit(f"not refused: {said}")
"""


def test_arguments_of_the_wrong_kind():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
