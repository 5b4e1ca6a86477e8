"""What a result was made with: the machine and the versions, as plain text for a report.

[hardware, versions, command] -> report

Nothing heavy is imported to ask for its version, and a fact that the system does not tell is left out.
"""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from beats_trainer._version import __version__

__all__ = ["command", "hardware", "versions"]

_PACKAGES = ("torch", "lightning", "peft", "numpy", "soundfile", "soxr", "av")


def hardware() -> dict[str, str]:
    """Describe this machine.

    Returns:
        Of ``CPU``, ``cores``, ``memory``, ``GPU`` and ``operating system`` those that are known. Never the
        machine's name or the user's.

    Example:
        >>> "operating system" in hardware()
        True
    """
    facts = {
        "CPU": _cpu_model(),
        "cores": _cores(),
        "memory": _memory(),
        "GPU": _gpus(),
        "operating system": _operating_system(),
    }
    return {name: value for name, value in facts.items() if value}


def versions() -> dict[str, str]:
    """Say which versions of Python, beats_trainer and the packages that touch numbers are installed.

    Returns:
        Package name -> version; packages that are not installed are left out.

    Example:
        >>> list(versions())[:3]
        ['beats_trainer', 'python', 'torch']
    """
    found = {"beats_trainer": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout.strip()
    for line in _read("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> str:
    in_machine = os.cpu_count() or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else in_machine
    return str(usable) if usable == in_machine else f"{usable} of {in_machine}"


def _memory() -> str:
    names = getattr(os, "sysconf_names", {})  # Windows has none
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return ""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def _gpus() -> str:
    """The GPUs that the process uses, or else those that the driver lists."""
    torch = sys.modules.get("torch")  # not imported for this: the caller may be without it
    if torch is not None and torch.cuda.is_initialized():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        lines = [line for file in files for line in _read(file).splitlines()]
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):  # not Linux, or without the file
        return platform.platform(terse=True)
    return f"{name}, kernel {platform.release()}"


def _read(path: str | Path) -> str:
    """A system file's text, empty where the system has no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def command() -> str:
    """The command line of ``beats-trainer`` that this process runs; empty in any other program.

    Example:
        >>> command()  # in a test
        ''
    """
    program = Path(sys.argv[0])
    if program.stem not in ("beats-trainer", "__main__") or len(sys.argv) < 2:
        return ""
    if program.stem == "__main__" and program.parent.name != "beats_trainer":
        return ""
    return shlex.join(["beats-trainer", *sys.argv[1:]])
