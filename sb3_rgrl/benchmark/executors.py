"""
Where runs are made: processes of this machine, a Ray cluster, or Slurm through submitit.

All of them start the same process, :mod:`~sb3_rgrl.benchmark.one_run`, and need the folder of the results at the same path on
all machines.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sb3_rgrl.benchmark.results import OUTPUT_FILE
from sb3_rgrl.benchmark.timing import THREAD_VARIABLES


class Job(Protocol):
    """A run that was handed over."""

    def poll(self) -> str | None:
        """
        :return: None: it goes on or waits; else how its process ended, for people.
        """

    def cancel(self) -> None:
        """End it."""


class Executor(Protocol):
    """Takes runs."""

    def submit(self, folder: Path, mix_versions: bool) -> Job:
        """
        :param folder: Folder of the run, with its ``run.json``.
        :param mix_versions: See :func:`~sb3_rgrl.benchmark.one_run.execute`.
        :return: The job.
        """

    def close(self) -> None:
        """Let go of the cluster."""


def start_process(folder: Path, mix_versions: bool) -> subprocess.Popen[bytes]:
    """
    :param folder: Folder of the run, with its ``run.json``.
    :param mix_versions: See :func:`~sb3_rgrl.benchmark.one_run.execute`.
    :return: The process that makes it, with one thread; what it prints goes to ``output.txt``.
    """
    package = str(Path(__file__).resolve().parents[2])
    # It finds this very package, wherever it is started.
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": path}
    command = [sys.executable, "-m", "sb3_rgrl.benchmark.one_run", str(folder), str(os.getpid())]
    with open(folder / OUTPUT_FILE, "wb") as output:
        return subprocess.Popen(
            [*command, *(["mix"] if mix_versions else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches all processes of a session: the command ends its runs itself.
            start_new_session=True,
        )


def make_run(folder: str, mix_versions: bool) -> int:
    """
    Make one run in a process of its own, on the machine where this is called.

    :param folder: Folder of the run.
    :param mix_versions: See :func:`~sb3_rgrl.benchmark.one_run.execute`.
    :return: Exit status of the process.
    """
    return start_process(Path(folder), mix_versions).wait()


def how_it_ended(status: int) -> str:
    """
    :param status: Exit status of a process.
    :return: The same for people.
    """
    return f"its process was ended by signal {-status}" if status < 0 else f"its process ended with exit status {status}"


# This machine


class LocalJob:
    """
    A process of this machine.

    :param process: The process.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> str | None:
        """See :meth:`Job.poll`."""
        status = self.process.poll()
        return None if status is None else how_it_ended(status)

    def cancel(self) -> None:
        """See :meth:`Job.cancel`."""
        self.process.kill()
        self.process.wait()


class LocalExecutor:
    """Processes of this machine. It has no options."""

    def __init__(self, results: Path, options: dict[str, Any]) -> None:
        if options:
            raise ValueError(f"--executor local takes no options, got {', '.join(options)}")

    def submit(self, folder: Path, mix_versions: bool) -> LocalJob:
        """See :meth:`Executor.submit`."""
        return LocalJob(start_process(folder, mix_versions))

    def close(self) -> None:
        """See :meth:`Executor.close`."""


# Ray


class RayJob:
    """
    A task of a Ray cluster.

    :param ray: The module.
    :param task: Reference to its result.
    """

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def poll(self) -> str | None:
        """See :meth:`Job.poll`."""
        done, _ = self.ray.wait([self.task], timeout=0)
        if not done:
            return None
        try:
            return how_it_ended(self.ray.get(self.task))
        except self.ray.exceptions.RayError as error:
            return f"Ray: {type(error).__name__}: {error}"

    def cancel(self) -> None:
        """See :meth:`Job.cancel`. The run's own process ends when it finds its worker gone."""
        self.ray.cancel(self.task, force=True)


class RayExecutor:
    """
    A Ray cluster that is there already. One run is one task of one CPU.

    :param results: Not needed.
    :param options: Arguments of ``ray.init``; without ``address`` the one of ``RAY_ADDRESS`` or of this machine.
    :raises ValueError: If Ray is not installed or there is no cluster.
    """

    def __init__(self, results: Path, options: dict[str, Any]) -> None:
        # Ray reads it when it is imported. Its own 20 tries of 41 seconds keep who mistyped an address waiting for 14 minutes.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
        self.ray = _import("ray")
        try:
            self.ray.init(**{"address": "auto", "log_to_driver": False, **options})
        except (ConnectionError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"--executor ray: {error}. Start a cluster with `ray start --head`, or give its address with "
                "--executor-option address=HOST:PORT"
            ) from error
        # A crashed run is reported, and made again by the same command.
        self.task = self.ray.remote(num_cpus=1, max_retries=0)(make_run)

    def submit(self, folder: Path, mix_versions: bool) -> RayJob:
        """See :meth:`Executor.submit`."""
        return RayJob(self.ray, self.task.remote(str(folder.resolve()), mix_versions))

    def close(self) -> None:
        """See :meth:`Executor.close`."""
        self.ray.shutdown()


# Slurm


class SubmititJob:
    """
    A job of submitit.

    :param job: The job.
    """

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> str | None:
        """See :meth:`Job.poll`."""
        if not self.job.done():
            return None
        problem = self.job.exception()
        return how_it_ended(self.job.result()) if problem is None else f"submitit: {problem}"

    def cancel(self) -> None:
        """See :meth:`Job.cancel`."""
        self.job.cancel(check=False)


class SubmititExecutor:
    """
    Slurm, or processes that submitit starts here where there is no Slurm. Its files go to ``.submitit`` in the results.

    :param results: Folder of the results.
    :param options: ``cluster`` (``slurm`` or ``local``; default: what there is) and arguments of
        ``AutoExecutor.update_parameters``, e.g. ``slurm_partition``; ``timeout_min`` is a day unless given.
    :raises ValueError: If submitit is not installed or does not take the options.
    """

    def __init__(self, results: Path, options: dict[str, Any]) -> None:
        submitit = _import("submitit")
        chosen = {"timeout_min": 24 * 60, "cpus_per_task": 1, **options}
        cluster = chosen.pop("cluster", None)
        try:
            self.executor = submitit.AutoExecutor(folder=results.resolve() / ".submitit", cluster=cluster)
            self.executor.update_parameters(**chosen)
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            raise ValueError(f"--executor submitit: {error}") from error

    def submit(self, folder: Path, mix_versions: bool) -> SubmititJob:
        """See :meth:`Executor.submit`."""
        return SubmititJob(self.executor.submit(make_run, str(folder.resolve()), mix_versions))

    def close(self) -> None:
        """See :meth:`Executor.close`."""


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--executor {name} needs {name}: pip install 'sb3-rgrl[{name}]' ({error})") from error


EXECUTORS: dict[str, Callable[[Path, dict[str, Any]], Executor]] = {
    "local": LocalExecutor,
    "ray": RayExecutor,
    "submitit": SubmititExecutor,
}
"""Name on the command line -> what makes it of the folder of the results and options."""
