"""The figure and the tables of docs/scaling.md: three models on 1 to 1024 GPUs, predicted.

`python -m benchmarks.step_time --plot docs/scaling.png` draws it, and prints the tables. Everything
is launch/step_time.py and launch/simulation.py on the H100 preset, whose assumptions the document
lists; nothing is measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_train.config import DeepSpeedConfig, RunConfig, TrainConfig
from dist_train.shapes import published_shape
from launch.hardware import HARDWARE
from launch.simulation import Simulation, simulate
from launch.step_time import StepTime, step_time
from launch.workload import Workload, workload_of
from memory_index.atomic_file import replacing
from memory_index.config import BankConfig
from model.config import BackboneConfig, GramConfig

Sharing = Literal["rank", "node", "world"]

RANKS = tuple(2**power for power in range(11))
SHARINGS: tuple[Sharing, ...] = ("rank", "node", "world")
VARIATES, ENTRIES = 7, 10_000_000
JITTER = 0.02
"""Assumed of a GPU; benchmarks.step_time measures that of a CPU core."""
STEPS = 100
HARDWARE_NAME = "h100"

# Okabe and Ito 2008.
BLUE, ORANGE, GREEN, PINK, SKY, RED = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
)  # fmt: skip
STYLES: dict[Sharing, tuple[str, str]] = {
    "rank": ("-", "a copy on every rank"),
    "node": ("--", "shared by a node"),
    "world": (":", "shared by all ranks"),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and what one GPU reads of a step."""

    label: str
    name: str
    llm_layers: int
    windows: int
    """Of one rank in a step."""
    load_in_4bit: bool
    recompute: bool
    colour: str

    def workload(self, ranks: int, sharing: Sharing, zero_stage: int = 2) -> Workload:
        """Of one rank."""
        config = RunConfig(
            backbone=BackboneConfig(
                name=self.name,
                llm_layers=self.llm_layers,
                load_in_4bit=self.load_in_4bit,
                activation_checkpointing=self.recompute,
            ),
            gram=GramConfig(use_gram=True),
            bank=BankConfig(shard_group=sharing, index="ivf_flat", memory_gib=12),
            train=TrainConfig(batch_size=self.windows * ranks),
            deepspeed=DeepSpeedConfig(zero_stage=zero_stage),
        )
        shape = published_shape(self.name, self.llm_layers)
        return workload_of(config, shape, ranks, variates=VARIATES, bank_entries=ENTRIES)


SETTINGS = (
    Setting(label="GPT-2, 12 layers, bf16", name="openai-community/gpt2", llm_layers=12, windows=8,
            load_in_4bit=False, recompute=False, colour=BLUE),
    Setting(label="Qwen2.5 7B, 28 layers, 4-bit", name="Qwen/Qwen2.5-7B", llm_layers=28, windows=8,
            load_in_4bit=True, recompute=False, colour=RED),
    Setting(label="Llama 3.1 70B, 80 layers, 4-bit", name="meta-llama/Llama-3.1-70B",
            llm_layers=80, windows=2, load_in_4bit=True, recompute=True, colour=GREEN),
)  # fmt: skip


def predict(setting: Setting, ranks: int, sharing: Sharing, zero_stage: int = 2) -> StepTime:
    """A step of equal ranks."""
    return step_time(setting.workload(ranks, sharing, zero_stage), HARDWARE[HARDWARE_NAME], ranks)


def simulated(setting: Setting, ranks: int, sharing: Sharing) -> Simulation:
    """A job of ranks with the spread that is assumed, over one rank of the same kind."""
    hardware = replace(HARDWARE[HARDWARE_NAME], jitter=JITTER)
    alone = setting.workload(1, sharing)
    return simulate(setting.workload(ranks, sharing), hardware, ranks, steps=STEPS, alone=alone)


def save_scaling_figure(path: Path) -> None:
    """Draw windows per second, efficiency, and the parts of a step of the smallest model."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _draw_curves(left, middle)
        _draw_parts(right, SETTINGS[0])
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def tables() -> str:
    """The tables of docs/scaling.md, in Markdown."""
    return "\n\n".join([_efficiency_table(), _parts_table()])


def _draw_curves(rates: Axes, efficiencies: Axes) -> None:
    for setting in SETTINGS:
        for sharing, (style, _) in STYLES.items():
            found = [simulated(setting, ranks, sharing) for ranks in RANKS]
            for axes, values in (
                (rates, [one.windows_per_s for one in found]),
                (efficiencies, [100 * one.efficiency for one in found]),
            ):
                axes.plot(RANKS, values, color=setting.colour, linestyle=style, linewidth=1.8)
        one = simulated(setting, 1, "rank").windows_per_s
        rates.plot(
            RANKS, [one * ranks for ranks in RANKS], color="#BBBBBB", linewidth=0.8, zorder=0
        )
        rates.annotate(
            setting.label, (1, one), (0, 6), textcoords="offset points", color=setting.colour,
            rotation=33, rotation_mode="anchor",
        )  # fmt: skip
    for style, label in STYLES.values():
        efficiencies.plot([], [], color="black", linestyle=style, label=f"bank: {label}")
    efficiencies.legend(frameon=False, loc="lower left")
    efficiencies.set_ylim(0, 103)
    rates.set_yscale("log")
    rates.set_title("Throughput (grey: proportional)")
    rates.set_ylabel("windows per second")
    efficiencies.set_title("Efficiency against one GPU")
    efficiencies.set_ylabel("% of the proportional throughput")
    for axes in (rates, efficiencies):
        _ranks_axis(axes)
        axes.grid(alpha=0.25)


def _draw_parts(axes: Axes, setting: Setting) -> None:
    parts = [_parts(predict(setting, ranks, "rank")) for ranks in RANKS]
    names = list(parts[-1])
    heights = np.array([[one.get(name, 0.0) for one in parts] for name in names])
    colours = dict(zip(names, (BLUE, SKY, GREEN, ORANGE, PINK, RED, "#000000"), strict=False))
    bottom = np.zeros(len(RANKS))
    for name, values in zip(names, heights, strict=True):
        axes.bar(range(len(RANKS)), values, 0.75, bottom, color=colours[name], label=name)
        bottom += values
    axes.set_xticks(range(len(RANKS)), [str(ranks) for ranks in RANKS], rotation=45)
    axes.set_xlabel("ranks (GPUs)")
    axes.set_ylabel("ms per step")
    axes.set_title(f"A step of {setting.label.split(',')[0]}, bank on every rank")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, loc="upper left")


def _parts(time: StepTime) -> dict[str, float]:
    """What a step's time consists of, in ms; what runs beside the compute is left out."""
    parts = {"compute": time.compute_s, "search on the GPU": time.search_exposed_s}
    serial = {name: one.seconds for name, one in time.collectives.items() if not one.overlaps}
    order = ("norms", "all-reduce gradients", "all-gather parameters", "stop flag")
    parts |= {name: serial[name] for name in order if name in serial}
    return {name: 1000 * seconds for name, seconds in parts.items()}


def _ranks_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS[::2], [str(ranks) for ranks in RANKS[::2]])
    axes.set_xlabel("ranks (GPUs)")


def _efficiency_table() -> str:
    shown = (1, 8, 64, 256, 1024)
    lines = [_row(["model", "bank", *(f"n = {ranks}" for ranks in shown), "windows/s at 1024"])]
    lines.append(_row(["---"] * (len(shown) + 3)))
    for setting in SETTINGS:
        for sharing in SHARINGS:
            found = {ranks: simulated(setting, ranks, sharing) for ranks in shown}
            cells = [f"{100 * found[ranks].efficiency:.1f} %" for ranks in shown]
            rate = f"{found[1024].windows_per_s:,.0f}"
            lines.append(_row([setting.label, STYLES[sharing][1], *cells, rate]))
    return "\n".join(lines)


def _parts_table() -> str:
    names = ["compute", "optimizer", "all-reduce gradients", "all-gather parameters", "norms",
             "stop flag", "gather queries", "return answers", "search", "step"]  # fmt: skip
    lines = [_row(["ms at 1024 ranks", *names]), _row(["---"] * (len(names) + 1))]
    shown = [(setting, sharing, 2) for setting in SETTINGS for sharing in SHARINGS]
    shown += [(SETTINGS[0], "rank", 0), (SETTINGS[0], "rank", 3)]
    for setting, sharing, stage in shown:
        time = predict(setting, 1024, sharing, stage)
        exchanges = {**time.collectives, **time.search_collectives}
        values = {name: one.seconds for name, one in exchanges.items()}
        values |= {"compute": time.compute_s, "optimizer": time.optimizer_s,
                   "search": time.search_s, "step": time.total_s}  # fmt: skip
        cells = [f"{1000 * values[name]:.3g}" if name in values else "" for name in names]
        label = f"{setting.label.split(',')[0]}, ZeRO-{stage}, bank {sharing}"
        lines.append(_row([label, *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
