"""hmmlearn's own tests, from its wheel, with `hmmlearn` bound to the drop-in: all of them pass.

`STATESPAN_SLOW=1 pytest tests/compat/test_redirected.py` runs the slow ones too.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

FOUND = importlib.util.find_spec("hmmlearn")
HERE = Path(__file__).parent / "redirected" / "hmmlearn"
"""What stands where hmmlearn stood: names of the drop-in, and aliases of two private modules that its tests reach for.

`_hmmc` (its compiled recursions) is written over statespan's forward algorithm and Viterbi, so that the numbers from
the literature in those tests test statespan; `_kl_divergence` takes the drop-in's divergences where it has them.
"""

GROUPS = {
    "base": "test_base test_utils test_kl_divergence test_categorical_hmm test_multinomial_hmm test_poisson_hmm",
    "gaussian": "test_gaussian_hmm",
    "mixtures": "test_gmm_hmm test_gmm_hmm_multisequence test_gmm_hmm_new",
    "variational": "test_variational_categorical test_variational_gaussian",
}

SLOW = "[log or mcgrory or criterion"
"""Run where STATESPAN_SLOW is set: implementation="log", which runs the same code here; fits of hundreds of steps."""


@pytest.mark.skipif(FOUND is None, reason="hmmlearn is not installed")
@pytest.mark.parametrize("group", GROUPS)
def test_hmmlearn_tests_itself_on_the_drop_in(group, tmp_path):
    assert FOUND is not None and FOUND.origin is not None
    package = tmp_path / "hmmlearn"
    shutil.copytree(HERE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        Path(FOUND.origin).parent / "tests", package / "tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "HMMLEARN_SEED": "1",
        "OMP_NUM_THREADS": "1",  # one thread and one seed: the same run everywhere
        "PYTEST_ADDOPTS": "",
    }
    modules = [f"hmmlearn/tests/{name}.py" for name in GROUPS[group].split()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *modules]
    if "STATESPAN_SLOW" not in os.environ:
        command += ["-k", f"not ({SLOW})"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 10, done.stdout[-2000:]


def test_every_module_of_tests_is_run():
    if FOUND is None or FOUND.origin is None:
        pytest.skip("hmmlearn is not installed")
    there = {path.stem for path in (Path(FOUND.origin).parent / "tests").glob("test_*.py")}
    assert there == {name for names in GROUPS.values() for name in names.split()}
