"""The processes that train together: started, agreed, and ended alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from unspool.encoders import device_named
from unspool.errors import UnspoolError, UsageError
from unspool.ops.distributed import Ranks
from unspool.training.journal import imported

PATIENCE = timedelta(hours=6)  # while one process decodes all videos, or validates
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
T = TypeVar("T")


class Processes:
    """This process and the others of the run. What one of them raises, all of them raise."""

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.ranks = Ranks(fabric.global_rank, fabric.world_size)
        # of its own, on the CPU: agreeing must not wait for the GPU
        self._group: Any = None
        if self.ranks.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        found: torch.device = self.fabric.device
        return found

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any process."""
        if self._group is None:
            return flags
        set_ = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(set_, dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in set_.tolist())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Of each value over the processes."""
        if self._group is None:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return dict(zip(values, (total / self.ranks.size).tolist(), strict=True))

    def settle(self, error: UnspoolError | None) -> None:
        """Raise the error of any process on all of them."""
        if not self.any(error is not None)[0]:
            return
        if self._group is None:
            assert error is not None
            raise error
        told: list[UnspoolError | None] = [None] * self.ranks.size
        dist.all_gather_object(told, error, group=self._group)
        raise next(one for one in told if one is not None)

    def first(self, work: Callable[[], object]) -> None:
        """Do it on the first process alone."""
        error: UnspoolError | None = None
        if self.ranks.rank == 0:
            try:
                work()
            except UnspoolError as raised:
                error = raised
        self.settle(error)

    def from_first(self, work: Callable[[], T]) -> T:
        """Do it on the first process; all get what it returns."""
        found: list[Any] = [None]
        self.first(lambda: found.__setitem__(0, work()))
        if self._group is not None:
            dist.broadcast_object_list(found, src=0, group=self._group)
        value: T = found[0]
        return value

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do it on the first process of each machine, then on the others, who find its work done."""
        found: list[T] = []
        for turn in (True, False):
            error: UnspoolError | None = None
            if (self.fabric.local_rank == 0) == turn:
                try:
                    found.append(work())
                except UnspoolError as raised:
                    error = raised
            self.settle(error)
        return found[0]

    def end(self) -> None:
        """All have come here, and none needs the others any more."""
        if self._group is not None:
            dist.barrier(group=self._group)
            dist.destroy_process_group()


@dataclass(frozen=True)
class Machines:
    """Where to train."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    devices: int | None = None  # processes on each machine; None: as the launcher says, else 1
    nodes: int | None = None  # machines; None: as the launcher says, else 1


def start(machines: Machines, precision: str) -> Processes:
    """One process, or the others too: started here, by torchrun, or by SLURM.

    Raises UsageError for devices that are not there and a number that contradicts the launcher.
    """
    device = device_named(machines.device)
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 is for GPUs; use bf16 or fp32 on the CPU")
    imported("tensorboard", "unspool[train]")  # before any work: it is needed later
    torch.backends.cudnn.benchmark = True  # all batches have one size
    fabric = _fabric(device, *_counts(machines, device), precision)
    fabric.launch()
    return Processes(fabric)


def _fabric(device: torch.device, devices: int, nodes: int, precision: str) -> Any:
    lightning = imported("lightning_fabric", "unspool[train]")
    strategies = imported("lightning_fabric.strategies", "unspool[train]")
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # importing it sets another level
    many = devices * nodes > 1
    chosen: Any = devices
    if device.type == "cuda" and device.index is not None:
        chosen = [device.index]
    try:
        return lightning.Fabric(
            accelerator=device.type,
            devices=chosen,
            num_nodes=nodes,
            precision=PRECISIONS[precision],
            # buffers are the same everywhere already: batch norms are those of all processes
            strategy=strategies.DDPStrategy(timeout=PATIENCE, broadcast_buffers=False) if many else "auto",
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"--device {device} --devices {devices} --nodes {nodes}: {error}") from error


def _counts(machines: Machines, device: torch.device) -> tuple[int, int]:
    """Processes per machine and machines, which a launcher has decided where there is one."""
    launched = _launched()
    asked = machines.devices, machines.nodes
    devices, nodes = (a if a is not None else b for a, b in zip(asked, launched or (1, 1), strict=True))
    if launched and (devices, nodes) != launched:
        raise UsageError(
            f"--devices {devices} --nodes {nodes}, but the launcher has started {launched[0]} on each of "
            f"{launched[1]} machines; leave both options away"
        )
    if devices < 1 or nodes < 1:
        raise UsageError(f"--devices {devices} --nodes {nodes}: 1 or more of each")
    if device.type == "cuda" and device.index is not None and devices > 1:
        raise UsageError(f"--device {device} names one device; use --device cuda with --devices {devices}")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise UsageError(f"--devices {devices}: there are {torch.cuda.device_count()} GPUs here")
    return devices, nodes


def _launched() -> tuple[int, int] | None:
    """(processes per machine, machines) as torchrun or SLURM say."""
    names = os.environ
    if "TORCHELASTIC_RUN_ID" in names:
        here = int(names["LOCAL_WORLD_SIZE"])
        return here, int(names["WORLD_SIZE"]) // here
    if "SLURM_PROCID" in names and names.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(names.get("SLURM_NNODES", "1"))
        return int(names.get("SLURM_NTASKS", "1")) // nodes, nodes
    return None
