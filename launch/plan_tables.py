"""A plan as tables for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_train.config import RunConfig
from dist_train.parameter_counts import ParameterCounts
from dist_train.shapes import BackboneShape
from launch.bank_plan import SEARCH_SOURCE, BankPlan
from launch.data_facts import DataFacts
from launch.memory_plan import MemoryPlan
from launch.plan_request import GIB, PlanRequest
from launch.recommend import RESERVE, Recommendation
from launch.step_time import StepTime


def say(lines: Iterable[str]) -> None:
    """Print a section, and an empty line after it."""
    print("\n".join(lines), end="\n\n", flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align columns: the first to the left, the others to the right."""
    whole = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in whole
    ]


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:.2f}"


def seconds(value: float) -> str:
    """Seconds with a unit that suits them."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def opening(
    config: RunConfig,
    request: PlanRequest,
    shape: BackboneShape,
    facts: DataFacts,
    precision: str,
) -> list[str]:
    """What is planned."""
    bits = ", 4-bit" if config.backbone.load_in_4bit else ""
    return [
        f"plan of {config.name}: {request.gpus[0]} x {request.device}, {precision}{bits}",
        f"  backbone   {config.backbone.name}, {shape.num_layers} blocks of width {shape.d_llm}",
        f"  data       {facts.source}; {facts.num_variates} variates, {facts.train_windows:,} "
        "training windows",
        f"  runtime    {request.runtime_gib:g} GiB of each rank before anything is built "
        "(--runtime_gib)",
    ]


def parameters(counts: ParameterCounts) -> list[str]:
    """Numbers by part."""
    rows = [(name, f"{count.total:,}") for name, count in counts.trained.items()]
    rows += [("trained", f"{counts.trained_total:,}"), ("frozen", f"{counts.frozen_total:,}")]
    return table(("parameters", "number"), rows)


def memory(plan: MemoryPlan, ranks: int, config: RunConfig) -> list[str]:
    """Parts of a rank's memory in every phase."""
    parts = list(dict.fromkeys(part for phase in plan.phases.values() for part in phase))
    head = ("GiB of a rank", *plan.phases)
    rows = [
        (part, *(gib(phase[part]) if part in phase else "" for phase in plan.phases.values()))
        for part in parts
    ]
    totals = [gib(sum(phase.values())) for phase in plan.phases.values()]
    stage = f"ZeRO-{config.deepspeed.zero_stage}, offload {config.deepspeed.offload}"
    lines = [f"memory on {ranks} ranks, {stage}", *table(head, [*rows, ("total", *totals)])]
    if plan.host:
        lines.append(
            f"host memory of a rank: {gib(plan.host_total)} GiB ("
            + ", ".join(f"{part} {gib(size)}" for part, size in plan.host.items()) + ")"
        )  # fmt: skip
    return [*lines, f"needs {gib(plan.total)} GiB, most of it when it comes to: {plan.peak_phase}"]


def layouts(plans: Mapping[str, MemoryPlan], ranks: int) -> list[str]:
    """What ZeRO stages and offloading make of it."""
    rows = [
        (name, gib(plan.total), plan.peak_phase, gib(plan.host_total) if plan.host else "-")
        for name, plan in plans.items()
    ]
    return [f"by layout, on {ranks} ranks",
            *table(("GiB of a rank", "total", "phase", "host"), rows)]  # fmt: skip


def banks(own: BankPlan | None, sizes: Mapping[int, BankPlan | str], ranks: int) -> list[str]:
    """The run's bank, and others."""
    if own is None:
        return ["memory bank: none"]
    rows = [_bank_row(own, "this run's")]
    lines = []
    for entries, bank in sizes.items():
        if isinstance(bank, str):
            lines.append(f"{entries:.0e} entries: {bank}")
        else:
            rows.append(_bank_row(bank, f"{entries:.0e}"))
    head = ("bank entries", "number", "index", "shared by", "bytes each", "GiB", "of a rank",
            "sent MiB", "search on CPU")  # fmt: skip
    return [
        f"memory bank on {ranks} ranks; sent: queries and answers of a micro-batch, by each rank",
        *table(head, rows),
        *lines,
        f"search: {SEARCH_SOURCE}",
    ]


def _bank_row(bank: BankPlan, name: str) -> tuple[str, ...]:
    sent = (bank.query_bytes_sent + bank.answer_bytes_sent) / 2**20
    return (
        name, f"{bank.entries:,}", bank.choice.kind, str(bank.sharing), str(bank.entry_bytes),
        gib(bank.index_bytes), gib(bank.rank_bytes), f"{sent:.2f}", seconds(bank.search_cpu_s),
    )  # fmt: skip


def measured(found: Mapping[str, Any]) -> list[str]:
    """What a step took here."""
    return [
        f"measured here ({found['device']}): {seconds(found['step_s'])} for a micro-batch of "
        f"{found['windows']} windows, {found['flops_per_s']:.3g} FLOP/s"
    ]


def ranks(
    rows: Sequence[tuple[int, RunConfig, MemoryPlan, StepTime | None]],
    facts: DataFacts,
    request: PlanRequest,
) -> list[str]:
    """Memory and time on each number of ranks."""
    timed = rows[0][3] is not None
    head: tuple[str, ...] = ("ranks", "batch", "GiB of a rank")
    if timed:
        head += ("step", "compute", "exchanges", "search", "windows/s", "epoch")
    lines = []
    for count, config, plan, time in rows:
        line: tuple[str, ...] = (str(count), str(config.train.batch_size), gib(plan.total))
        if time is not None:
            epoch_s = time.epoch_s(facts.train_windows)
            line += (
                seconds(time.total_s), seconds(time.compute_s), seconds(time.collectives_s),
                seconds(time.search_s), f"{time.windows_per_s:.4g}",
                "-" if epoch_s is None else seconds(epoch_s),
            )  # fmt: skip
        lines.append(line)
    title = "time and memory by ranks" if timed else "memory by ranks"
    if request.is_range:
        micro = rows[0][1].train.micro_batch_size
        title += f"; each rank keeps its micro-batch of {micro}"
        if any(time is not None and time.epoch_s(facts.train_windows) is None
               for _, _, _, time in rows):  # fmt: skip
            title += "; -: the training windows are less than one batch"
    if not timed:
        lines_after = ["time: say how fast a rank is: --hardware, --flops or --measure"]
    else:
        links = request.hardware or "h100"
        rate = "" if request.flops is None and not request.measure else ", the rate as told"
        lines_after = [f"time: rates and links of {links}{rate}; docs/scaling.md says what is "
                       "assumed; an epoch without validation"]  # fmt: skip
    return [title, *table(head, lines), *lines_after]


def backbones(plans: Mapping[str, tuple[MemoryPlan, MemoryPlan]]) -> list[str]:
    """Memory of a rank with other language models, whole."""
    rows = [
        (name, gib(whole.parts.get("frozen weights", 0)), gib(whole.total),
         gib(packed.parts.get("frozen weights", 0)), gib(packed.total))
        for name, (whole, packed) in plans.items()
    ]  # fmt: skip
    head = ("with all blocks of", "weights", "GiB of a rank", "4-bit weights", "4-bit, of a rank")
    return table(head, rows)


def recommendation(found: Recommendation, request: PlanRequest, asked_for: MemoryPlan) -> list[str]:
    """How the run fits the GPU."""
    limit = request.gpu_memory_gib or 0
    line = f"for {limit:g} GiB, {RESERVE:.0%} left free: "
    if found.fits and not found.taken:
        return [f"{line}fits, {gib(found.plan.total)} GiB"]
    lines = [f"{line}does not fit, {gib(asked_for.total)} GiB"]
    for rung, plan in found.alternatives:
        lines.append(f"  {rung.options}: {gib(plan.total)} GiB; {rung.effect}, the model stays")
    verb = "fits" if found.fits else "still does not fit"
    options = {key: value for rung in found.taken for key, value in rung.settings.items()}
    told = " ".join(
        f"--{key} {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in options.items()
    )
    return [*lines, f"  down the ladder it {verb}, {gib(found.plan.total)} GiB, with", f"  {told}"]
