"""What `/status` answers: to everyone whether june works, to owners how it has fared."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from june.chat import AdapterHealth
from june.chat.commands import in_markdown
from june.hardware import Gpu
from june.messages import ModelDescription, Platform
from june.store import Stats, Use, Waiting
from june.telemetry import errors_total

HOUR_S = 3600.0
MAX_PEOPLE = 20
"""Whose use is listed; the others are counted."""


@dataclass(frozen=True, slots=True)
class Status:
    """How june is."""

    version: str
    models: tuple[ModelDescription, ...]
    """Those that are ready."""
    waiting: Waiting
    last_timings_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds by stage of the last answer; empty: there was none."""


@dataclass(frozen=True, slots=True)
class Details:
    """What owners are told beside that."""

    apps: Mapping[Platform, AdapterHealth]
    last_hour: Stats
    up_s: float
    """Time since june started."""
    errors: Mapping[str, int]
    """Failures since then, by kind."""
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    """Why the GPUs are not known; empty: they are."""
    use: tuple[Use, ...]
    """By person, the most diligent first."""


def status_text(status: Status, details: Details | None = None) -> str:
    """Return Markdown on how june is, with details for an owner."""
    lines = [f"june {status.version}"]
    lines += [f"- {in_markdown(model.name)} ({model.device})" for model in status.models]
    lines.append(f"- messages waiting: {status.waiting.new}, being answered: {status.waiting.processing}")
    if status.last_timings_s:
        timings = (f"{name} {value:.2f} s" for name, value in status.last_timings_s.items())
        lines.append(f"- last answer: {in_markdown(', '.join(timings))}")
    if details is not None:
        lines += _owners_lines(status.waiting, details)
    return "\n".join(lines)


def errors_since_start() -> dict[str, int]:
    """Return how many failures this process counted by kind, such as "llm timeout", most frequent first."""
    counts = {
        f"{sample.labels['stage']} {sample.labels['type']}": int(sample.value)
        for metric in errors_total.collect()
        for sample in metric.samples
        if sample.name == "june_errors_total"
    }
    return dict(sorted(counts.items(), key=lambda kind: (-kind[1], kind[0])))


def _owners_lines(waiting: Waiting, details: Details) -> list[str]:
    lines = [f"- to be sent: {waiting.unsent}, being sent: {waiting.sending}"]
    if waiting.new:
        lines.append(f"- the oldest has waited for {_duration(waiting.oldest_new_s)}")
    hour = details.last_hour
    if hour.response_p50_s is None or hour.response_p95_s is None:
        lines.append("- last hour: nothing was answered")
    else:
        lines.append(
            f"- last hour: half of the answers within {hour.response_p50_s:.2f} s,"
            f" 95 % within {hour.response_p95_s:.2f} s"
        )
    errors = ", ".join(f"{kind} {count}" for kind, count in details.errors.items()) or "none"
    lines.append(f"- errors since the start {_duration(details.up_s)} ago: {in_markdown(errors)}")
    lines += [
        f"- {platform}: {health.state} {in_markdown(health.detail)}".rstrip()
        for platform, health in details.apps.items()
    ]
    lines += [
        f"- {in_markdown(gpu.name)}: {gpu.free_bytes / 1e9:.1f} of {gpu.total_bytes / 1e9:.1f} GB free"
        for gpu in details.gpus
    ]
    if details.gpu_problem:
        lines.append(f"- {in_markdown(details.gpu_problem)}")
    elif not details.gpus:
        lines.append("- no GPU")
    lines += ["", "**Today, and in 30 days**", "", *(map(_use_line, details.use[:MAX_PEOPLE]))]
    if not details.use:
        lines.append("nobody")
    if len(details.use) > MAX_PEOPLE:
        lines.append(f"- and {len(details.use) - MAX_PEOPLE} more")
    return lines


def _use_line(use: Use) -> str:
    today, month = use.today, use.month
    who = f"`{use.user}` {in_markdown(use.name)}".rstrip()
    return (
        f"- {who}: {today.messages} and {month.messages} messages,"
        f" {today.tokens} and {month.tokens} tokens,"
        f" {_duration(today.audio_s)} and {_duration(month.audio_s)} of recordings"
    )


def _duration(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.0f} s"
