"""Ray against plain local processes: the same jobs of 10 s, two at a time, on this machine.

pip install 'unspool[ray]' && python benchmarks/farm.py [JOBS]

A job waits instead of computing and reports ten times a second, as a video does: what differs is what handing
out, reporting and collecting cost.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from unspool.jobs import Report, Stop, run_jobs
from unspool.results import Json
from unspool.workers import Cluster

SECONDS, WORKERS = 10.0, 2


@dataclass(frozen=True)
class Job:
    name: str


def work(job: Job, report: Report, stop: Stop) -> Json:
    begun = perf_counter()
    frame = 0
    while perf_counter() - begun < SECONDS and not stop.is_set():
        time.sleep(0.1)
        frame += 1
        report({"event": "frame", "video": job.name, "frame": frame, "frames": 100})
    return {"name": job.name}


class Never:
    def is_set(self) -> bool:
        return False


def seconds(jobs: list[Job], cluster: Cluster | None) -> float:
    events: list[Json] = []
    begun = perf_counter()
    done = list(run_jobs(jobs, work, events.append, Never(), workers=WORKERS, cluster=cluster))
    taken = perf_counter() - begun
    assert sorted(job.name for job, _ in done) == sorted(job.name for job in jobs)
    assert all(isinstance(outcome, dict) for _, outcome in done), done
    return taken


def main() -> None:
    import ray  # noqa: PLC0415  (an extra)

    jobs = [Job(str(number)) for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 8)]
    least = SECONDS * -(-len(jobs) // WORKERS)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the local processes run
    begun = perf_counter()
    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print(f"starting a cluster of {WORKERS} took {perf_counter() - begun:.1f} s (not counted below)")
    with tempfile.TemporaryDirectory() as folder:
        on_ray = seconds(jobs, Cluster("local", Path(folder)))
    in_processes = seconds(jobs, None)
    print(f"{len(jobs)} jobs of {SECONDS:.0f} s by {WORKERS} workers, at least {least:.0f} s")
    print(f"local processes {in_processes:7.2f} s  {100 * (in_processes / least - 1):5.1f} % above")
    print(f"Ray             {on_ray:7.2f} s  {100 * (on_ray / least - 1):5.1f} % above")
    print(f"Ray over local processes {100 * (on_ray / in_processes - 1):+.1f} %")


if __name__ == "__main__":
    main()
