"""What this machine can do at most: float32 matrix products and memory copies, on torch's threads.

python benchmarks/floor.py
"""

from __future__ import annotations

from time import perf_counter

import torch


def best_of(repeats: int, work: object) -> float:
    """Least seconds of some calls: what the machine gives when nothing else runs."""
    assert callable(work)
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        work()
        seconds.append(perf_counter() - started)
    return min(seconds)


def gemm_rate(size: int = 2048) -> float:
    """Float32 operations per second of a square matrix product (two per multiply-add)."""
    a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    torch.mm(a, b, out=out)
    return 2 * size**3 / best_of(5, lambda: torch.mm(a, b, out=out))


def bandwidth(megabytes: int = 256) -> float:
    """Bytes per second of a copy, read and written bytes both counted."""
    a = torch.rand(megabytes << 18)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * a.nbytes / best_of(5, lambda: b.copy_(a))


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"matrix products {gemm_rate() / 1e9:.0f} GFLOP/s, copies {bandwidth() / 1e9:.1f} GB/s")
