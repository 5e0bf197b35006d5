"""What memory there is and what is used, on the device and on the host, in bytes."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import jax

from gm_jax import doctor


# limit, use and statistics of a container, and what in these last is a cache of files: by version
CONTAINERS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        ("total_inactive_file", "total_active_file"),
    ),
)


def device() -> dict[str, int]:
    """Return used, free, limit and peak of JAX's device; a CPU's are the host's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return host()
    used, limit = int(stats["bytes_in_use"]), int(stats["bytes_limit"])
    peak = int(stats.get("peak_bytes_in_use", used))
    return {"used": used, "free": limit - used, "limit": limit, "peak": peak}


def host() -> dict[str, int]:
    """Return what this process uses, what is free, all there is, and the process's peak."""
    used, limit = resident(), doctor.memory_bytes()
    return {
        "used": used,
        "free": max(min(available(), limit, *left_in_container()), 0),
        "limit": limit,
        "peak": max(peak_resident(), used),  # the system's own is a little late
    }


def resident() -> int:
    """Return the resident size of this process; its peak where the system does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_resident()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident() -> int:
    """Return the largest resident size that this process had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available() -> int:
    """Return what the host can still give, what caches hold included."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        return next(int(kib) * 1024 for name, kib, *_ in lines if name == "MemAvailable:")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def left_in_container() -> list[int]:
    """Return what a container's limit still leaves, what caches hold included; [] without one."""
    left = []
    for limit, used, statistics, caches in CONTAINERS:
        files = [doctor.CGROUP / name for name in (limit, used, statistics)]
        if not all(file.is_file() for file in files):
            continue
        most, now, lines = (file.read_text().split() for file in files)
        if most[0].isdigit():  # it says "max" where there is no limit
            held = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
            left.append(int(most[0]) - int(now[0]) + sum(held.get(name, 0) for name in caches))
    return left


def ran_out(error: object) -> bool:
    """Return whether JAX's error, or what a process said of it, is that memory does not suffice."""
    return "RESOURCE_EXHAUSTED" in str(error)
