"""Whole commands in processes of their own: killed at any moment, and several at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from make_training import (
    COMMAND,
    ENVIRONMENT,
    assert_equal_states,
    order,
    read_lines,
    state,
    write_noise,
    write_videos,
)

from unspool.methods.dul import build

EXACT = ("dul.optimiser='sgd'", "dul.learning_rate=1.0", "dul.momentum=0.0")  # weights tell gradients


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos")


def command(folder: Path, videos: Path, *more: object) -> tuple[list[str], dict[str, str]]:
    words = [*COMMAND, "--data", str(videos), "-o", str(folder), "-q", *map(str, more)]
    return words, {**ENVIRONMENT, "UNSPOOL_CACHE": str(folder.parent / "cache")}


def run(folder: Path, videos: Path, *more: object, launcher: tuple[str, ...] = ()) -> str:
    words, environment = command(folder, videos, *more)
    done = subprocess.run(
        [*launcher, *words], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_once(folder: Path, videos: Path, *more: object, wait: float, after_start: bool) -> None:
    """Start the command and `kill -9` it `wait` s later, or so long after it has begun to learn."""
    words, environment = command(folder, videos, *more)
    log = folder / "log.jsonl"
    before = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while after_start and process.poll() is None and (log.stat().st_size if log.exists() else 0) <= before:
        time.sleep(0.01)
    time.sleep(wait)
    process.kill()
    process.wait()


def survives(tmp_path: Path, videos: Path, kills: int, steps: int, seed: int) -> None:
    rng = random.Random(seed)
    options = ("--steps", steps, "--checkpoint-every", 3)
    run(tmp_path / "whole", videos, *options)
    for number in range(kills):
        after_start = number % 4 != 3  # some while it starts or continues
        wait = rng.uniform(0.0, 0.4) if after_start else rng.uniform(0.5, 4.0)
        kill_once(tmp_path / "killed", videos, *options, wait=wait, after_start=after_start)
    run(tmp_path / "killed", videos, *options)
    assert_equal_states(state(tmp_path / "whole"), state(tmp_path / "killed"))
    assert [line["step"] for line in read_lines(tmp_path / "killed")] == list(range(1, steps + 1))
    losses = [[line["loss"] for line in read_lines(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_a_run_killed_three_times_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, videos: Path
) -> None:
    survives(tmp_path, videos, kills=3, steps=40, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, videos: Path
) -> None:
    survives(tmp_path, videos, kills=20, steps=400, seed=1)


def settings(*single: str) -> list[str]:
    return [word for setting in single for word in ("--set", setting)]


def test_two_processes_learn_what_one_learns_from_the_union_of_their_batches(
    tmp_path: Path, videos: Path
) -> None:
    """Loss to 1e-6, gradients to 1e-5, batch norms included."""
    run(tmp_path / "one", videos, "--steps", 1, *settings(*EXACT))
    run(tmp_path / "two", videos, "--steps", 1, "--devices", 2, *settings(*EXACT))
    losses = [read_lines(tmp_path / name)[0]["loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    start = torch.manual_seed(0) and build(order(tmp_path, steps=1).settings.config)
    first = dict(start.named_parameters())
    one, two = (state(tmp_path / name)["learner"] for name in ("one", "two"))
    gradient = torch.cat([(first[key].detach() - one[key]).flatten() for key in first])
    apart = torch.cat([(two[key] - one[key]).flatten() for key in first])
    assert gradient.norm() > 0.1
    assert apart.norm() < 1e-5 * gradient.norm()
    for key in one.keys() - first.keys():  # statistics of batch norms
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_processes_of_torchrun_are_taken_over_and_one_process_goes_on(
    tmp_path: Path, videos: Path
) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python")
    run(tmp_path / "a", videos, "--steps", 2, launcher=torchrun)
    assert state(tmp_path / "a")["step"] == 2
    run(tmp_path / "a", videos, "--steps", 2)  # how many processes there are is no setting


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        port: int = here.getsockname()[1]
        return port


@pytest.mark.slow
def test_two_machines_under_torchrun_learn_what_two_processes_of_one_learn(
    tmp_path: Path, videos: Path
) -> None:
    """Two agents of one process each stand for the machines; gloo, weights bit for bit."""
    run(tmp_path / "one", videos, "--steps", 2, "--devices", 2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "--no-python"]
    words, environment = command(tmp_path / "two", videos, "--steps", 2)
    agents = [
        subprocess.Popen([*torchrun, "--node-rank", rank, *words], env=environment, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    told = [agent.communicate(timeout=250)[1].decode() for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert_equal_states(state(tmp_path / "one"), state(tmp_path / "two"))


def test_a_number_of_processes_that_contradicts_the_launcher_is_refused(tmp_path: Path, videos: Path) -> None:
    words, environment = command(tmp_path / "a", videos, "--devices", 3)
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}
    done = subprocess.run(words, env=environment | slurm, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the launcher has started 4 on each of 2 machines" in done.stderr


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_evenly_is_refused_by_all(tmp_path: Path, videos: Path) -> None:
    words, environment = command(tmp_path / "a", videos, "--devices", 2, *settings("dul.clips=3"))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("3 clips of a step cannot be shared by 2 processes") == 1


@pytest.mark.slow
def test_what_fails_in_one_process_is_told_once_and_ends_all(tmp_path: Path, videos: Path) -> None:
    """The second process meets videos that have changed; the first tells."""
    decoded = ("--devices", 2, "--frames", "decode")
    words, environment = command(tmp_path / "a", videos, "--steps", 2000, *decoded)
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "a/log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    for path in sorted(videos.iterdir()):
        write_noise(path.with_suffix(".new.mp4"), frames=9, seed=40)
        path.with_suffix(".new.mp4").replace(path)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert told.count("has changed while it is in use") == 1


@pytest.mark.slow
def test_a_signal_to_the_first_process_stops_the_others(tmp_path: Path, videos: Path) -> None:
    words, environment = command(tmp_path / "a", videos, "--steps", 2000, "--devices", 2)
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "a/log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert state(tmp_path / "a")["step"] == read_lines(tmp_path / "a")[-1]["step"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs a small disk of its own")
def test_a_disk_that_is_really_full_leaves_the_older_checkpoint(tmp_path: Path, videos: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        options = ("--steps", 300, "--checkpoint-every", 1, "--keep", 30)
        words, environment = command(small / "a", videos, *options)
        environment["UNSPOOL_CACHE"] = str(tmp_path / "cache")
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert state(small / "a")["step"] >= 1
    finally:
        subprocess.run(["umount", str(small)], check=False)
