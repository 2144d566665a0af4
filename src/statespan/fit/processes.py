"""Restarts in processes of their own.

Threads do not do it: an iteration on a short series is Python, which runs one thread at a time, and the kernels of a
long one take both cores already. Measured on two cores, two threads were 0.5 to 1.2 times as fast as one after another.
A process costs two to three seconds to start, so this is for fits that last longer.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.fit.fitting import Result, attempt


def attempts(model: Any, tasks: list[tuple], jobs: int) -> Iterator[Result]:
    """The results of `attempt(model, *task)`, in order; each worker takes every `jobs`-th task and some of the cores.

    Raises:
        StatespanError: the model or fitter cannot be sent to a process, or one died.
    """
    shares = [tasks[i::jobs] for i in range(jobs)]
    threads = max(1, torch.get_num_threads() // jobs)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(i) for i in range(jobs)]
        for path, share in zip(paths, shares, strict=True):
            try:
                path.write_bytes(pickle.dumps((model, share, threads)))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise StatespanError(
                    f"jobs={jobs}: cannot send this to another process ({error}); use jobs=1"
                ) from error
        with ThreadPoolExecutor(jobs) as pool:
            found = list(pool.map(_work, paths))
    return iter([found[i % jobs][i // jobs] for i in range(len(tasks))])


def _work(path: Path) -> list[Result]:
    """Run one worker to its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from statespan.fit.processes import main; main()", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StatespanError(f"a worker of jobs= died ({last}); use jobs=1")
    return pickle.loads(path.read_bytes())


def main() -> None:
    """The worker: read the tasks, write the results in their place."""
    path = Path(sys.argv[1])
    model, share, threads = pickle.loads(path.read_bytes())
    torch.set_num_threads(threads)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for task in share:
        model.load_state_dict(start)
        value, by, state = attempt(model, *task)
        results.append((value, by, None if state is None else {k: v.clone() for k, v in state.items()}))
    path.write_bytes(pickle.dumps(results))
