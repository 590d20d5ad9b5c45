"""The plot of `bench llm`, if matplotlib is installed."""

from pathlib import Path
from typing import Any

from june.errors import JuneError

COLORS = {"june": "#0072b2", "llama": "#e69f00", "xllamacpp": "#8c8c8c"}
"""Colours for people with any colour vision (Okabe and Ito), and grey."""
LABELS = {"june": "june", "llama": "Llama behind a lock", "xllamacpp": "xllamacpp (llama-server)"}


def draw(report: dict[str, Any], file: Path) -> str:
    """Draw the plot and return a sentence that says where it is, or why there is none.

    The PNG shows tokens a second and the longest time to the first token by conversations at once.

    Raises:
        JuneError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and takes a second to import
    except ImportError:
        return "There is no plot, since matplotlib is not installed; it is in june's extra bench."

    counts = sorted({run["conversations"] for run in report["runs"]})
    names = list(dict.fromkeys(run["engine"] for run in report["runs"]))
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    rates, waits = figure.subplots(1, 2)
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        runs = sorted(
            (run for run in report["runs"] if run["engine"] == name), key=lambda run: run["conversations"]
        )
        places = [index + (number - (len(names) - 1) / 2) * width for index in range(len(counts))]
        style: dict[str, Any] = {"width": width * 0.94, "color": COLORS[name], "label": LABELS[name]}
        bars = rates.bar(places, [run["tokens_per_second"] for run in runs], **style)
        rates.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
        bars = waits.bar(places, [run["ttft_max_s"] for run in runs], **style)
        waits.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
    rates.set_title("Tokens a second, all answers together", fontsize=11)
    rates.set_ylabel("tokens/s")
    waits.set_title("Longest wait for a first token", fontsize=11)
    waits.set_ylabel("seconds")
    for axes in (rates, waits):
        axes.set_xticks(range(len(counts)), [str(together) for together in counts])
        axes.set_xlabel("conversations at once")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.margins(y=0.12)
    machine = report["machine"]
    processors = ", ".join(machine["gpus"]) or machine["cpu"]
    figure.suptitle(f"{report['model']} on {processors}, {machine['cores']} cores", fontsize=12)
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    try:
        figure.savefig(file, format="png", dpi=150)
    except OSError as error:
        raise JuneError(f"The plot cannot be written to {file}: {error.strerror}.") from None
    return f"The plot is in {file}."
