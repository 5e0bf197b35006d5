"""What this machine offers to training, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "torch")
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
OLDEST_DRIVER = 525  # major version that CUDA 12 needs on Linux; source: JAX's installation guide
LEAST_FREE = 200 * 2**20  # bytes, for a run with its checkpoints

CGROUP = Path("/sys/fs/cgroup")
GPU_PLATFORMS = ("gpu", "cuda", "rocm")  # as JAX names them
_PATIENCE = 20  # seconds for nvidia-smi, which hangs where a driver does


@dataclass(frozen=True)
class Nvidia:
    """What the machine says of its NVIDIA GPUs, with or without JAX."""

    gpus: tuple[str, ...] = ()  # names, as far as they are known
    driver: str | None = None


def examine(
    find_nvidia: Callable[[], Nvidia] | None = None,
    find_devices: Callable[[], list[dict[str, Any]]] | None = None,
    find_version: Callable[[str], str | None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Look at the machine.

    Args:
        find_nvidia: finds the GPUs of the machine; None asks the machine.
        find_devices: finds what JAX sees, as `jax_devices` does; None asks JAX.
        find_version: finds the version of a package, None where it is missing; None asks Python.
        environment: variables that hide devices from JAX.

    Returns:
        The object of `doctor --json`; `problems` say what was found and how to mend it, and `ok`
        that there are none.
    """
    nvidia = (find_nvidia or nvidia_gpus)()
    find_version = find_version or installed_version
    versions = {name: find_version(name) for name in ("gm-jax", *PACKAGES, *PLUGINS)}
    problems = _package_problems(find_version)
    devices: list[dict[str, Any]] = []
    try:
        devices = (find_devices or jax_devices)()
    except Exception as error:  # whatever it is, the doctor is asked about it
        problems.append(f"JAX does not start: {_first_line(error)}. {_unset(environment)}")
    unseen = unseen_gpu(nvidia, devices, versions, environment)
    problems += [unseen] if unseen else []
    runs = _runs_folder()
    problems += _folder_problems(runs)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "system": platform.platform(),
        "cpu_count": cpu_count(),
        "memory_bytes": memory_bytes(),
        "devices": devices,
        "jax_platform": devices[0]["platform"] if devices else None,
        "nvidia_gpus": list(nvidia.gpus),
        "nvidia_driver": nvidia.driver,
        "runs_folder": runs,
        "notes": _notes(nvidia, devices),
        "problems": problems,
        "ok": not problems,
    }


def unseen_gpu(
    nvidia: Nvidia,
    devices: Iterable[Mapping[str, Any]],
    versions: Mapping[str, str | None],
    environment: Mapping[str, str] = os.environ,
) -> str | None:
    """Say why JAX does not see a GPU that the machine has, and how to mend it; None if it does.

    Args:
        nvidia: what the machine has.
        devices: what JAX sees, as of `jax_devices`.
        versions: of jaxlib and its plugins.
        environment: variables that hide devices from JAX.
    """
    if not nvidia.gpus or any(device["platform"] in GPU_PLATFORMS for device in devices):
        return None
    reasons = "; ".join(_reasons(nvidia, versions, environment))
    return f"JAX does not see the GPU ({nvidia.gpus[0]}): {reasons}."


def lines(report: Mapping[str, Any]) -> Iterable[str]:
    """Yield a report for a person."""
    for name, version in report["versions"].items():
        if name == "torch" and version is None:
            version = "not installed (only needed by the exporter)"
        if version or name not in PLUGINS:
            yield f"{name:<20}{version or 'not installed'}"
    yield f"{'system':<20}{report['system']}"
    yield f"{'CPU cores, memory':<20}{report['cpu_count']}, {_gib(report['memory_bytes'])}"
    for device in report["devices"]:
        memory = f", {_gib(device['memory_bytes'])}" if device["memory_bytes"] else ""
        yield f"{'JAX sees':<20}{device['kind']} ({device['platform']}{memory})"
    driver = f", driver {report['nvidia_driver'] or 'unknown'}"
    for gpu in report["nvidia_gpus"]:
        yield f"{'NVIDIA GPU':<20}{gpu}{driver}"
    runs = report["runs_folder"]
    yield f"{'runs are written to':<20}{runs['path']}, {_gib(runs['free_bytes'])} free"
    yield from report["notes"]
    yield from (f"PROBLEM: {problem}" for problem in report["problems"])


def jax_devices() -> list[dict[str, Any]]:
    """Return kind, platform and memory (bytes, None if unknown) of each device that JAX sees."""
    import jax

    return [
        {
            "kind": device.device_kind,
            "platform": device.platform,
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        }
        for device in jax.local_devices()
    ]


def nvidia_gpus(root: Path = Path("/"), smi: str = "nvidia-smi") -> Nvidia:
    """Ask nvidia-smi for the GPUs, or the driver's files where it does not answer."""
    program = shutil.which(smi)
    if program is not None:
        query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            done = subprocess.CompletedProcess(query, returncode=1)
        rows = [line.rpartition(", ") for line in (done.stdout or "").splitlines() if line]
        if done.returncode == 0 and rows:
            return Nvidia(tuple(row[0] for row in rows), rows[0][2])
    files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    names = [re.search(r"Model:\s*(.+)", file.read_text()) for file in files]
    gpus = tuple(name[1].strip() if name else "NVIDIA GPU" for name in names)
    nodes = sorted(root.glob("dev/nvidia[0-9]"))
    version = root / "proc/driver/nvidia/version"
    driver = re.search(r"\d{3,}\.[\d.]+", version.read_text()) if version.is_file() else None
    return Nvidia(gpus or tuple(f"/dev/{node.name}" for node in nodes), driver and driver[0])


def installed_version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _reasons(
    nvidia: Nvidia, versions: Mapping[str, str | None], environment: Mapping[str, str]
) -> list[str]:
    """Say why JAX may not see a GPU, each with its mend."""
    reasons = []
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        reasons.append(f"JAX_PLATFORMS={platforms} hides it, unset it")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        reasons.append(f"CUDA_VISIBLE_DEVICES={visible!r} hides it, unset it")
    plugins = {name: versions[name] for name in PLUGINS if versions[name]}
    if not plugins:
        reasons.append("the CUDA plugin is missing, pip install -e '.[cuda12]'")
    for name, version in plugins.items():
        if version != versions["jaxlib"]:
            reasons.append(
                f"{name} {version} is not of jaxlib {versions['jaxlib']}, "
                "pip install --upgrade -e '.[cuda12]'"
            )
    major = int(nvidia.driver.split(".")[0]) if nvidia.driver else None
    if major is not None and major < OLDEST_DRIVER:
        reasons.append(
            f"driver {nvidia.driver} is too old for CUDA 12, install {OLDEST_DRIVER} or newer"
        )
    return reasons or [
        "the CUDA plugin is there but does not start, `JAX_PLATFORMS=cuda python -c "
        "'import jax; jax.devices()'` says why"
    ]


def _package_problems(find_version: Callable[[str], str | None]) -> list[str]:
    """Name packages that are missing or older than gm-jax needs."""
    problems = []
    for requirement in metadata.requires("gm-jax") or ():
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement)
        if match is None:
            continue  # of an extra
        name, least = match[1], match[2]
        found = find_version(name)
        if found is None or _numbers(found) < _numbers(least):
            problems.append(
                f"{name} {found or 'is missing'}: expected {least} or newer; pip install -e ."
            )
    return problems


def _notes(nvidia: Nvidia, devices: list[dict[str, Any]]) -> list[str]:
    if not devices:
        return []
    if devices[0]["platform"] != "cpu":
        more = f", one of {len(nvidia.gpus)} GPUs" if len(nvidia.gpus) > 1 else ""
        return [f"training runs on {devices[0]['kind']}{more}."]
    return ["training runs on the CPU." if nvidia.gpus else "no GPU: training runs on the CPU."]


def _folder_problems(runs: Mapping[str, Any]) -> list[str]:
    path, problems = runs["path"], []
    if not runs["writable"]:
        problems.append(f"{path} cannot be written: train with --out in a folder that can.")
    if runs["free_bytes"] < LEAST_FREE:
        problems.append(
            f"{_gib(runs['free_bytes'])} are free in {path}, a run needs up to "
            f"{_gib(LEAST_FREE)}: make room, or train with --out on another disk."
        )
    return problems


def _runs_folder() -> dict[str, Any]:
    path = Path("exports") if Path("exports").is_dir() else Path()
    return {
        "path": str(path.resolve()),
        "writable": os.access(path, os.W_OK),
        "free_bytes": shutil.disk_usage(path).free,
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def cpu_count() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory of the machine, or of the container where that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = CGROUP / name
        text = file.read_text().strip() if file.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def _unset(environment: Mapping[str, str]) -> str:
    platforms = environment.get("JAX_PLATFORMS")
    if platforms:
        return f"JAX_PLATFORMS={platforms} asks for a device that is not there: unset it."
    return "Install it again: pip install --upgrade -e ."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
