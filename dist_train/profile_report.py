"""The readable summary of a profile: tables of time and memory, and what stands out."""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_train.step_breakdown import BACKWARD, FORWARD, GRADIENTS, UNACCOUNTED, Breakdown, Label

OPERATORS_SHOWN = 12
WORTH_SAYING = 0.1
"""Share of a step from which on a wait gets a line among the findings."""

_TITLES = {
    FORWARD: "rest of the model",
    BACKWARD: "rest of the backward pass",
    GRADIENTS: "gradients: sum, exchange",
}
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Operator:
    """All calls of one operator in the recorded steps."""

    name: str
    calls: int
    host_ms: float
    """Without the operators that it calls."""

    device_ms: float
    """Its own kernels on the GPU."""

    allocated: int
    """Bytes allocated less bytes freed, on the device that trains."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a part of the model."""

    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What one rank recorded."""

    device: str
    first_step: int
    """Number of the first recorded step; the first of a run is 1."""

    plain_step_ms: float
    """The step before the recorded ones."""

    breakdown: Breakdown
    operators: list[Operator]
    parameters: dict[str, Sizes]
    """By part of the model."""

    optimizer_bytes: int
    """Averages and float32 copies that this rank keeps."""

    peak_rss: int
    """Largest resident memory of the process so far, in bytes."""

    device_start: int
    """Bytes of GPU memory that torch held when the recording began; 0 on a CPU."""

    @property
    def step_ms(self) -> float:
        """Mean duration of a recorded step."""
        return sum(self.breakdown.steps_ms) / len(self.breakdown.steps_ms)

    def share(self, *names: str) -> float:
        """Share of a step that parts or phases take, both directions together."""
        host_ms = self.breakdown.host_ms
        return sum(ms for label, ms in host_ms.items() if label.name in names) / sum(
            self.breakdown.steps_ms
        )


@dataclass(frozen=True)
class _Row:
    title: str
    ahead: float
    """Milliseconds per step: forward, or of a phase that has no direction."""

    back: float = 0.0
    device: float = 0.0

    @property
    def total(self) -> float:
        return self.ahead + self.back


def summarize(run: str, recordings: Sequence[Recording | None]) -> str:
    """Write the summary.

    Args:
        run: Name of the run.
        recordings: Of each rank, in their order; None where recording failed. The tables show the
            first that did not.

    Raises:
        ValueError: No rank recorded anything.
    """
    shown = next((rank for rank, one in enumerate(recordings) if one is not None), None)
    if shown is None:
        raise ValueError("no rank recorded a step.")
    recording = recordings[shown]
    assert recording is not None
    sections = [
        f"# Profile of {run}\n",
        _opening(recording, shown, len(recordings)),
        "## Findings\n",
        *[f"* {line}" for line in findings(recordings)],
        "\n## Time per step\n",
        *_time_table(recording),
    ]
    if len(recordings) > 1:
        sections += ["\n## Ranks\n", *_rank_table(recordings)]
    sections += ["\n## Operators by self time, per step\n", *_operator_table(recording)]
    sections += ["\n## Memory\n", *_memory_table(recording)]
    return "\n".join(sections) + "\n"


def findings(recordings: Sequence[Recording | None]) -> list[str]:
    """Say what stands out, a line each."""
    present = [one for one in recordings if one is not None]
    recording = present[0]
    rows = _rows(recording)
    step, largest = recording.step_ms, rows[0]
    directions = (
        f" ({_percent(largest.ahead / step)} forward, {_percent(largest.back / step)} backward)"
        if largest.back
        else ""
    )
    share = _percent(largest.total / step)
    lines = [f"The largest part is {largest.title}: {share} of a step{directions}."]
    waits = {
        "data loading": "more data.num_workers, or a shorter prompt",
        "retrieval wait": "the search takes longer than the step before it: see bank.index",
    }
    for name, remedy in waits.items():
        if recording.share(name) >= WORTH_SAYING:
            lines.append(f"{_percent(recording.share(name))} of a step is {name}: {remedy}.")
    exchanged = recording.share(GRADIENTS, BACKWARD, "optimizer")
    if exchanged >= WORTH_SAYING:
        lines.append(
            f"{_percent(exchanged)} of a step is spent on gradients and optimizer outside the "
            "layers; on several ranks waiting for the slowest is part of it."
        )
    if recording.share("") >= WORTH_SAYING:
        lines.append(f"{_percent(recording.share(''))} of a step is not accounted for.")
    if recording.breakdown.device_ms:
        busy = sum(recording.breakdown.device_ms.values()) / sum(recording.breakdown.steps_ms)
        lines.append(f"Kernels keep the GPU busy for {_percent(busy)} of a step.")
    missing = [str(rank) for rank, one in enumerate(recordings) if one is None]
    if missing:
        lines.append(f"Nothing was recorded on rank {', '.join(missing)}; see its messages.")
    for kind, peak in sorted(recording.breakdown.allocated.items()):
        lines.append(
            f"{kind} memory peaks in {_title(peak.label)}, {_mib(peak.above_start)} MiB above "
            "where the recording began."
        )
    return lines


def _opening(recording: Recording, rank: int, num_ranks: int) -> str:
    steps = recording.breakdown.steps_ms
    first, last = recording.first_step, recording.first_step + len(steps) - 1
    return (
        f"Rank {rank} of {num_ranks} on {recording.device}, steps {first} to {last} "
        f"(ProfilerStep#{first - 1} to #{last - 1} of the trace). A recorded step took "
        f"{recording.step_ms:.1f} ms ({min(steps):.1f} to {max(steps):.1f}); the step before them, "
        f"not recorded, {recording.plain_step_ms:.1f} ms.\n"
    )


def _rows(recording: Recording) -> list[_Row]:
    """Every part and phase, largest first; without what is not accounted for."""
    num_steps = len(recording.breakdown.steps_ms)
    host, device = recording.breakdown.host_ms, recording.breakdown.device_ms
    rows = []
    for name in {label.name for label in [*host, *device]} - {UNACCOUNTED.name}:
        ahead, back = Label(name), Label(name, backward=True)
        rows.append(
            _Row(
                _TITLES.get(name, name),
                host.get(ahead, 0.0) / num_steps,
                host.get(back, 0.0) / num_steps,
                (device.get(ahead, 0.0) + device.get(back, 0.0)) / num_steps,
            )
        )
    return sorted(rows, key=lambda row: row.total, reverse=True)


def _time_table(recording: Recording) -> list[str]:
    on_gpu = bool(recording.breakdown.device_ms)
    step = recording.step_ms
    rows = [*_rows(recording), _Row("not accounted for", recording.share("") * step)]
    total = _Row(
        "sum",
        sum(row.ahead for row in rows),
        sum(row.back for row in rows),
        sum(row.device for row in rows),
    )
    gpu_head = (" GPU ms |", "---|") if on_gpu else ("", "")
    lines = [
        f"| part | forward or itself, ms | backward, ms | share |{gpu_head[0]}",
        f"|---|---|---|---|{gpu_head[1]}",
    ]
    for row in [*rows, total]:
        gpu_cell = f" {row.device:.2f} |" if on_gpu else ""
        back = f"{row.back:.2f}" if row.back else ""
        share = _percent(row.total / step)
        lines.append(f"| {row.title} | {row.ahead:.2f} | {back} | {share} |{gpu_cell}")
    return lines


def _rank_table(recordings: Sequence[Recording | None]) -> list[str]:
    lines = [
        "| rank | step, ms | layers | gradients, optimizer | retrieval wait | data wait | rest |",
        "|---|---|---|---|---|---|---|",
    ]
    for rank, one in enumerate(recordings):
        if one is None:
            lines.append(f"| {rank} | not recorded | | | | | |")
            continue
        layers = [*one.parameters, FORWARD]
        shares = (
            one.share(*layers),
            one.share(GRADIENTS, BACKWARD, "optimizer"),
            one.share("retrieval wait"),
            one.share("data loading"),
        )
        cells = " | ".join(_percent(share) for share in (*shares, 1 - sum(shares)))
        lines.append(f"| {rank} | {one.step_ms:.1f} | {cells} |")
    return lines


def _operator_table(recording: Recording) -> list[str]:
    num_steps = len(recording.breakdown.steps_ms)
    on_gpu = bool(recording.breakdown.device_ms)

    def cost(operator: Operator) -> float:
        return operator.device_ms if on_gpu else operator.host_ms

    lines = ["| operator | calls | host ms | GPU ms |" if on_gpu else "| operator | calls | ms |"]
    lines.append("|---|---|---|---|" if on_gpu else "|---|---|---|")
    for one in sorted(recording.operators, key=cost, reverse=True)[:OPERATORS_SHOWN]:
        gpu_cell = f" {one.device_ms / num_steps:.2f} |" if on_gpu else ""
        calls, host_ms = one.calls / num_steps, one.host_ms / num_steps
        lines.append(f"| `{one.name}` | {calls:g} | {host_ms:.2f} |{gpu_cell}")
    return lines


def _memory_table(recording: Recording) -> list[str]:
    sizes = recording.parameters.values()
    trained, frozen = sum(one.trained for one in sizes), sum(one.frozen for one in sizes)
    rows = [
        ("trained parameters", trained),
        ("frozen parameters", frozen),
        ("gradients of all trained parameters, before ZeRO divides them", trained),
        ("optimizer: averages and float32 copies, of this rank", recording.optimizer_bytes),
        ("largest resident memory of the process so far", recording.peak_rss),
    ]
    if recording.device_start:
        rows.append(("GPU memory that torch held when the recording began", recording.device_start))
    for kind, peak in sorted(recording.breakdown.allocated.items()):
        where = f"{kind} memory above where the recording began, at most (in {_title(peak.label)})"
        rows.append((where, peak.above_start))
    for kind, peak in sorted(recording.breakdown.largest.items()):
        where = f"{kind} memory, largest single allocation (in {_title(peak.label)})"
        rows.append((where, peak.above_start))
    lines = ["| what | MiB |", "|---|---|", *[f"| {what} | {_mib(size)} |" for what, size in rows]]
    lines += ["", "| part | trained, MiB | frozen, MiB |", "|---|---|---|"]
    for name, one in recording.parameters.items():
        lines.append(f"| {name} | {_mib(one.trained)} | {_mib(one.frozen)} |")
    num_steps = len(recording.breakdown.steps_ms)
    lines += ["", "| operator | allocated less freed by itself, MiB per step |", "|---|---|"]
    by_size = sorted(recording.operators, key=lambda one: one.allocated, reverse=True)
    for operator in by_size[: OPERATORS_SHOWN // 2]:
        lines.append(f"| `{operator.name}` | {_mib(operator.allocated / num_steps)} |")
    return lines


def _title(label: Label) -> str:
    name = _TITLES.get(label.name, label.name) or "no part"
    return f"{name} (backward)" if label.backward else name


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / _MIB:.1f}"
