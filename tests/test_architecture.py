"""The dependency rules, checked on the import statements. No import is executed."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {  # package -> the packages of this repository it may use
    "model": {"model"},
    "memory_index": {"memory_index"},
    "dist_train": {"dist_train", "model", "memory_index"},
    # A plan reads the settings of all of them, and the choice of the index.
    "launch": {"launch", "dist_train", "model", "memory_index"},
}
USERS_DOORS = {
    "dist_train/cli.py": ("launch.doctor", "launch.plan"),
    "model/pretrained.py": (
        "dist_train.export", "dist_train.frame_forecasts", "dist_train.loading",
    ),
}  # fmt: skip
"""Where users come in: the command line alone may import, lazily, what starts jobs, and TimeLLM
alone what loads a run and forecasts frames."""
ONE_OWNER = {  # heavy dependency -> the only files that may name it
    "deepspeed": {"dist_train/engine.py", "dist_train/engine_state.py"},
    "wandb": {"dist_train/wandb_run.py"},
    "wandb_workspaces": {"launch/wandb_workspace.py"},
    "faiss": {
        "memory_index/faiss_flat.py", "memory_index/faiss_ivf.py", "memory_index/faiss_hnsw.py",
        "memory_index/faiss_training.py", "memory_index/faiss_gpu.py",
    },
    "transformers": {
        "model/backbone_loading.py", "model/four_bits.py", "model/key_value_prefix.py",
        "model/patch_transformer.py",
    },
    "peft": {"model/adapters.py"},
    "bitsandbytes": {"model/four_bits.py"},
    "matplotlib": {"dist_train/figures/style.py", "dist_train/inspect_figure.py"},
    "scipy": {"dist_train/ablation/significance.py", "dist_train/selection.py"},
    "jsonargparse": {"dist_train/config.py", "dist_train/cli.py"},
    "torch.distributed": {"dist_train/distributed.py", "memory_index/groups.py"},
}  # fmt: skip
LAYERS = [  # inside dist_train: a module may import its own layer and the ones below, never up
    {"cli"},
    {
        "train", "scoring", "bank_command", "data_command", "inspect_command", "baseline_run",
        "ablation",
    },
    {"session"},
    {"outcome"},
    {"export"},
    {"frame_forecasts"},
    {"forecast_files"},
    {
        "trainer", "report", "loading", "prediction", "explanation", "inspection", "closed_form",
        "resume", "opening", "examples",
    },
    {"step_feed", "nonfinite", "checkpoint_writer", "throughput"},
    {"training_state"},
    {"comparison", "leak_alarm", "forecast_panel"},
    {"window_errors", "selection"},
    {"retrieval_ridge", "objective", "trend_fit"},
    {
        "build", "baselines", "patchtst", "preflight", "run_folder", "model_card",
        "exported_memory", "licences",
    },
    {"calibration", "saved_forecasts"},
    {"evaluation"},
    {"retrieval"},
    {"corpus_memory"},
    {
        "memory_build", "engine", "engine_state", "checkpoint", "optim", "tracking", "figures",
        "series_facts", "profiler", "conformal", "coverage", "score_table", "wandb_run",
        "wandb_identity", "histograms", "data_info",
    },
    {"inspect_figure", "token_text", "watchdog"},
    {"verdict"},
    {"precision", "metrics", "deepspeed_json", "profile_report", "out_of_memory", "node_stats"},
    {"data", "memory_account", "memory_ladder"},
    {"allocation_failure"},
    {
        "config", "config_file", "distributed", "reproducibility", "stopwatch", "worker",
        "step_breakdown", "progress", "processes", "beats", "process_memory", "stop_signals",
        "launcher", "local_copy", "tracking_config", "metric_catalog", "terminal", "flops",
        "shapes", "parameter_counts", "device_peaks", "random_neighbours", "baseline_names",
    },
]  # fmt: skip
# The configuration is composed of the data's own settings, which import nothing themselves.
ALSO_ALLOWED = {("dist_train/config.py", "data")}
TORCH_FREE = {  # what refuses a run must not need seconds to import
    "dist_train/cli.py", "dist_train/config.py", "dist_train/config_file.py",
    "dist_train/preflight.py", "dist_train/data_command.py", "dist_train/data_info.py",
    "dist_train/run_folder.py", "dist_train/train.py", "dist_train/data/windows.py",
    "dist_train/progress.py", "dist_train/processes.py", "dist_train/launcher.py",
    "dist_train/local_copy.py", "dist_train/ablation/command.py",
    "launch/local.py", "launch/check.py", "launch/stage.py", "launch/doctor/command.py",
    "dist_train/flops.py", "dist_train/parameter_counts.py", "dist_train/shapes.py",
    "dist_train/device_peaks.py", "dist_train/metric_catalog.py", "dist_train/tracking_config.py",
    "launch/hardware.py", "launch/network.py", "launch/simulation.py", "launch/step_time.py",
    "launch/workload.py", "launch/wandb_workspace.py",
    "model/config.py", "model/backbone_files.py",
}  # fmt: skip
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Every module named in an import statement of ``path``, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def layer_of(module: str) -> int:
    """The layer of a module of dist_train; a module in no layer is an error."""
    for number, layer in enumerate(LAYERS):
        if module in layer:
            return number
    raise AssertionError(f"dist_train/{module}.py is in no layer: add it to LAYERS")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_layers(path: Path):
    file = path.relative_to(ROOT).as_posix()
    names = imported_names(path)
    rooms = USERS_DOORS.get(file)
    if rooms is not None:
        assert not any(name.startswith(rooms) for name in imports_at_the_top(path))
        names = {name for name in names if not name.startswith(rooms)}
    roots = {name.split(".")[0] for name in names}
    assert roots & MAY_IMPORT.keys() <= MAY_IMPORT[file.split("/")[0]]
    if file.startswith("dist_train/") and path.name != "__init__.py":
        below = LAYERS[layer_of(file.split("/")[1].removesuffix(".py")) :]
        used = {name.split(".")[1] for name in names if name.startswith("dist_train.")}
        used -= {module for allowed, module in ALSO_ALLOWED if allowed == file}
        assert used <= set().union(*below), f"{file} imports upwards"
    for dependency, owners in ONE_OWNER.items():
        if any(name == dependency or name.startswith(dependency + ".") for name in names):
            assert file in owners, f"{dependency} belongs in {sorted(owners)}, not in {file}"


def imports_at_the_top(path: Path) -> set[str]:
    """Modules imported as soon as ``path`` is, type checking aside."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def reachable(file: str, seen: set[str]) -> None:
    """Collect the files of this repository that importing ``file`` executes."""
    if file in seen:
        return
    seen.add(file)
    for name in imports_at_the_top(ROOT / file):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            stem = "/".join(parts[:end])
            for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
                if (ROOT / candidate).exists():
                    reachable(candidate, seen)


@pytest.mark.parametrize("file", sorted(TORCH_FREE))
def test_refusals_do_not_wait_for_torch(file: str):
    seen: set[str] = set()
    reachable(file, seen)
    for reached in seen:
        roots = {name.split(".")[0] for name in imports_at_the_top(ROOT / reached)}
        assert not roots & {"torch", "transformers", "deepspeed"}, f"{file} imports {reached}"


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_every_module_has_its_test(package: str):
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
        and not (ROOT / "tests" / path.relative_to(ROOT)).with_name(f"test_{path.name}").exists()
    ]
    assert not missing, f"no test file for {missing}"


def test_every_folder_of_tests_is_a_package():
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
