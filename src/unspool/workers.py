"""Where jobs run: here, in worker processes, or as tasks of a Ray cluster; whichever, the same outcomes.

A job is lost when its process is killed. It is begun once more, by another process: jobs leave the same files
however often they are begun, and only what the last beginning returned is an outcome.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Empty
from typing import Any, Protocol
from uuid import uuid4

from unspool.errors import UnspoolError, UsageError
from unspool.results import Json, files_of, says_whole, vouches, written_whole

Report = Callable[[Json], None]
ATTEMPTS = 2  # beginnings of a job whose process is lost
LOST = (
    "a worker process was killed, most likely because memory ran out; use fewer --workers or a lower "
    "--resolution, and run the same command again"
)


class Stop(Protocol):
    """Asks whether work should end after the frame in hand."""

    def is_set(self) -> bool:
        """True once the run was asked to end."""


class Interrupted(Exception):
    """The work was asked to stop; what is whole stays."""


def stage_event(
    video: str, stage: str, done: float, total: int, rate: float, seconds_left: float | None = None
) -> Json:
    """The event that so much of one stage of a video's work is done; `rate`: frames/s.

    Without `seconds_left` what is left are frames.
    """
    left = max(0.0, total - done) / rate if seconds_left is None else seconds_left
    return {
        "event": "stage",
        "video": video,
        "stage": stage,
        "done": min(int(done + 1e-6), total),
        "total": total,
        "frames_per_second": round(rate, 2),
        "seconds_left": round(left),
    }


Work = Callable[[Any, Report, Stop], Json]  # importable by name, for worker processes
Files = Callable[[Path, str], list[Path]]  # in a result folder, of the job of this name
Outcome = tuple[Any, Json | BaseException]  # a job, and what its work returned or raised


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what a job takes of it."""

    address: str  # auto, local, HOST:PORT
    folder: Path  # of the result: what a machine that does not see it writes there is sent back
    gpus: bool = False  # a GPU for each job, where the cluster has any
    files: Files = files_of


def run_jobs(
    jobs: Sequence[Any],
    work: Work,
    report: Report,
    stop: Stop,
    *,
    workers: int = 1,
    cluster: Cluster | None = None,
) -> Iterator[Outcome]:
    """Yield every job with what `work` returned or raised, as they end; starts none after a stop.

    Raises UsageError where the cluster cannot be reached.
    """
    if cluster is not None and jobs:
        yield from _run_on_ray(jobs, work, report, stop, cluster)
    elif workers > 1 and len(jobs) > 1:
        yield from _run_in_processes(jobs, work, report, stop, min(workers, len(jobs)))
    else:
        yield from _run_here(jobs, work, report, stop)


def _run_here(jobs: Sequence[Any], work: Work, report: Report, stop: Stop) -> Iterator[Outcome]:
    for job in jobs:
        if stop.is_set():
            return
        try:
            yield job, work(job, report, stop)
        except Exception as error:
            yield job, error


def _begun_again(job: Any) -> Json:
    return {"event": "lost", "video": job.name, "text": f"{job.name}: its worker was lost; begun again"}


# ---------------------------------------------------------------------------------- local processes


def _run_in_processes(
    jobs: Sequence[Any], work: Work, report: Report, stop: Stop, workers: int
) -> Iterator[Outcome]:
    """Pools of one process each: a process that is killed takes no other job with it."""
    context = get_context("spawn")  # fork would copy torch's threads
    threads = max(1, (os.cpu_count() or 1) // workers)

    def process() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _start_worker, (threads,))

    manager = SyncManager(ctx=context)
    manager.start(_leave_signals_to_the_parent)
    with manager:
        events, stopped = manager.Queue(), manager.Event()
        waiting = deque((job, 1) for job in jobs)
        idle = [process() for _ in range(workers)]
        running: dict[Future[Json], tuple[Any, int, ProcessPoolExecutor]] = {}
        try:
            while running or (waiting and not stop.is_set()):
                while waiting and idle and not stop.is_set():
                    (job, attempt), pool = waiting.popleft(), idle.pop()
                    running[pool.submit(work, job, events.put, stopped)] = job, attempt, pool
                if stop.is_set():
                    stopped.set()
                ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _forward(events, report)
                for future in ended:
                    job, attempt, pool = running.pop(future)
                    lost = isinstance(future.exception(), BrokenProcessPool)
                    idle.append(process() if lost else pool)
                    if lost and attempt < ATTEMPTS and not stop.is_set():
                        report(_begun_again(job))
                        waiting.appendleft((job, attempt + 1))
                    elif lost:
                        yield job, Interrupted() if stop.is_set() else UnspoolError(f"{job.name}: {LOST}")
                    else:
                        yield job, future.exception() or future.result()
        finally:  # an error here waits only for the frames in hand
            stopped.set()
            for pool in [*idle, *(pool for *_, pool in running.values())]:
                pool.shutdown()


def _leave_signals_to_the_parent() -> None:
    """The parent decides; workers are asked to stop, also where the whole group gets the signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """Where it is killed nobody would ask this process to stop."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(threads: int) -> None:
    _leave_signals_to_the_parent()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        asked = re.match(r"\d+", os.environ.get(variable, ""))
        os.environ[variable] = str(min(threads, int(asked[0])) if asked else threads)


def _forward(events: Any, report: Report) -> None:
    while True:
        try:
            report(events.get_nowait())
        except Empty:
            return


# ------------------------------------------------------------------------------------- a Ray cluster


def _run_on_ray(
    jobs: Sequence[Any], work: Work, report: Report, stop: Stop, cluster: Cluster
) -> Iterator[Outcome]:
    """A task per job; Ray places them, and begins those of a lost worker again."""
    with _connected(cluster.address) as ray, _marked(cluster.folder) as mark:
        events = _events(ray)
        begun: Counter[str] = Counter()
        gpus = int(cluster.gpus and ray.cluster_resources().get("GPU", 0) > 0)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1)(_elsewhere)
        here = str(Path.cwd())
        running = {
            task.remote(job, work, events, cluster.folder, mark, here, cluster.files): job for job in jobs
        }
        cancelled = False
        while running:
            if stop.is_set() and not cancelled:
                cancelled = True
                for reference in running:  # a KeyboardInterrupt in what runs; the others never begin
                    ray.cancel(reference)
            ended, _ = ray.wait(list(running), timeout=0.2)
            for event in events.get_nowait_batch(events.qsize()):
                if event["event"] == "begun":
                    begun[event["video"]] += 1
                if event["event"] == "begun" and begun[event["video"]] > 1:
                    report(_begun_again(next(job for job in jobs if job.name == event["video"])))
                else:
                    report(event)
            for reference in ended:
                job = running.pop(reference)
                outcome = _fetched(ray, reference, job, cluster.folder, cluster.files)
                if not isinstance(outcome, Interrupted) or begun[job.name]:
                    yield job, outcome


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected. Raises UsageError where it is not installed or does not answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise UsageError(f"--ray {address} needs ray ({error}): pip install 'unspool[ray]'") from error
    if ray.is_initialized():  # by whoever calls us from Python
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **_alone(address))
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"--ray {address}: no cluster can be reached ({reason}); start one with `ray start --head`, or "
            "use --ray local"
        ) from error
    try:
        if main:
            signal.signal(signal.SIGTERM, ours)  # Ray has put its own in place
        yield ray
    finally:
        ray.shutdown()


def _alone(address: str) -> Json:
    return {"include_dashboard": False} if address == "local" else {}


def _events(ray: Any) -> Any:
    """A queue for the events of all tasks, on this machine: it lives as long as who reads it."""
    queue = import_module("ray.util.queue").Queue
    affinity = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    node = ray.get_runtime_context().get_node_id()
    return queue(actor_options={"num_cpus": 0, "scheduling_strategy": affinity(node, soft=False)})


@contextmanager
def _marked(folder: Path) -> Iterator[str]:
    """A hidden file in the result folder: a machine that sees it writes where we read."""
    mark = folder / f".{uuid4().hex}"
    mark.touch()
    try:
        yield mark.name
    finally:
        mark.unlink(missing_ok=True)


Sent = dict[str, bytes]  # files of the result, from where the folder is not ours


def _elsewhere(
    job: Any, work: Work, events: Any, folder: Path, mark: str, cwd: str, files: Files = files_of
) -> tuple[Json | Exception, Sent]:
    """Do one job on whichever machine this is; the files too, where the result folder is not seen here.

    There the job works in an empty folder: inputs are addresses or absolute paths.
    """

    def report(event: Json) -> None:  # not waited for: Ray lends the CPU of a task that waits to another
        events.actor.put_nowait.remote(event)

    report({"event": "begun", "video": job.name, "machine": socket.gethostname()})
    shared = (Path(cwd) / folder / mark).exists()
    with tempfile.TemporaryDirectory() as empty, chdir(cwd if shared else empty):
        try:
            outcome: Json | Exception = work(job, report, threading.Event())
        except Exception as error:
            if not isinstance(error, UnspoolError):
                error.add_note(traceback.format_exc())  # a traceback does not travel
            outcome = error
        events.qsize()  # all that was reported has arrived
        return outcome, {} if shared else _collected(job.name, folder, files)


def _collected(name: str, folder: Path, files: Files = files_of) -> Sent:
    """What this job has left, taken away; nothing of others, which may share an absolute folder here."""
    found: Sent = {}
    learnt = folder / "checkpoints" / f"{name}.pt"  # of a head; its pictures come later, and leave it alone
    for path in [*files(folder, name), *([learnt] if learnt.is_file() else [])]:
        if not path.name.startswith("."):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        path.unlink()
    return found


def _fetched(
    ray: Any, reference: Any, job: Any, folder: Path, files: Files = files_of
) -> Json | BaseException:
    try:
        outcome, sent = ray.get(reference)
    except (ray.exceptions.TaskCancelledError, KeyboardInterrupt):
        return Interrupted()
    except ray.exceptions.RayTaskError as error:  # before or after the work: another version of unspool, say
        return UnspoolError(f"{job.name}: the task failed on its machine: {error.cause}")
    except ray.exceptions.RayError as error:
        return UnspoolError(f"{job.name}: {LOST} ({type(error).__name__})")
    if any(says_whole(*file) for file in sent.items()):  # then what an earlier beginning left goes
        for stale in set(files(folder, job.name)) - {folder / name for name in sent}:
            stale.unlink()
    for name in sorted(sent, key=lambda path: (vouches(path), path)):
        with written_whole(folder / name) as part:
            part.write_bytes(sent[name])
    found: Json | BaseException = outcome
    return found
