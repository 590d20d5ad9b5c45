"""The parts of every report: percentiles, the machine, a JSON line."""

import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from june import __version__, hardware
from june.errors import JuneError


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile (linear interpolation) of at least one figure."""
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50_s": round(float(p50), 4), "p95_s": round(float(p95), 4)}


def machine() -> dict[str, str | int | float | list[str]]:
    """Return a description of the machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": name[1] if name else platform.machine(),
        "cores": hardware.cpu_cores(),
        "gpus": [gpu.name for gpu in hardware.find_gpus()],
        "python": platform.python_version(),
        "june": __version__,
    }


def process_age_s() -> float:
    """Return the seconds since this process started (field 22 of /proc/self/stat)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def emit(report: dict[str, Any], file: Path | None) -> None:
    """Print the report as the last line of output, and write it to `file` if given."""
    line = json.dumps(report)
    print(line)
    if file is not None:
        try:
            file.write_text(line + "\n", encoding="utf-8")
        except OSError as error:
            raise JuneError(f"The report cannot be written to {file}: {error.strerror}.") from None
