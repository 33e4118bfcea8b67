"""dist_train/ablation/cells.py: a folder for each run, none of them twice, none for two runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.ablation.cells import (
    Plan,
    differing_budget,
    lines_of,
    make_plan,
    settings_hash,
)
from dist_train.ablation.grid import Grid, Row, read_grid, split_line
from dist_train.config import ConfigError, RunConfig, load_run_config
from dist_train.data.config import DataConfig, SourceConfig
from model.config import GramConfig, ModelConfig
from tests.dist_train.ablation.ablations import base_run, plan_of
from tests.helpers.sources import run_over_sources, with_a_shorter_horizon


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("cells"))


def test_each_row_and_seed_has_a_folder_of_its_own(file: Path):
    plan = plan_of(file, seeds=2)
    assert len(plan.trainings) == 4
    assert [cell.config.train.seed for cell in plan.trainings] == [2021, 2022, 2021, 2022]
    assert [cell.config.tapr.use_tapr for cell in plan.trainings] == [False, False, True, True]
    folders = [cell.folder.relative_to(plan.folder / "cells") for cell in plan.trainings]
    assert [folder.name for folder in folders] == ["seed_2021", "seed_2022"] * 2
    assert [str(folder).split("-")[0] for folder in folders] == ["first", "first", "other", "other"]
    assert plan.folder.name == "tiny-ablation"


def test_the_arguments_of_a_cell_give_its_configuration(file: Path):
    for cell in plan_of(file, more=["--train.max_steps", "7"]).trainings:
        assert load_run_config(file, cell.arguments) == cell.config
        assert cell.config.train.max_steps == 7


def test_what_nothing_reads_makes_no_second_run(file: Path):
    rows = [Row(name=f"k{k}", keys=(f"--gram.top_k={k}",)) for k in (3, 5)]
    assert len(plan_of(file, rows, seeds=2).trainings) == 2  # the memory is off
    rows = [replace(row, keys=(*row.keys, "--gram.use_gram=true")) for row in rows]
    assert len(plan_of(file, rows, seeds=2).trainings) == 4


@pytest.mark.parametrize(
    ("always", "key", "values", "differ"),
    [
        ([], "tapr.n_scales", ("2", "3"), False),
        (["--tapr.use_tapr=true"], "tapr.n_scales", ("2", "3"), True),
        ([], "bank.bank_stride", ("1", "2"), False),
        (["--model.prompt=none"], "model.lags", ("peaks", "fft_raw"), False),
        (["--model.prompt=full"], "model.lags", ("peaks", "fft_raw"), True),
        (["--backbone.kind=none"], "backbone.llm_layers", ("1", "2"), False),
        (["--gram.use_gram=true", "--gram.retrieval_key=anchored"], "gram.refresh_every",
         ("3", "never"), False),
        (["--gram.use_gram=true", "--gram.retrieval_key=dual"], "gram.refresh_every",
         ("3", "never"), True),
        ([], "train.max_steps", ("3", "4"), True),
        ([], "train.patience", ("3", "4"), True),
        ([], "train.learning_rate", ("0.1", "0.2"), True),
        ([], "train.seed", ("3", "4"), False),
        ([], "data.num_workers", ("0", "1"), False),
        ([], "train.eval_batch_size", ("3", "4"), False),
        ([], "data.seq_len", ("48", "40"), True),
    ],
)  # fmt: skip
def test_what_decides_the_numbers_is_in_the_hash(
    file: Path, always: list[str], key: str, values: tuple[str, str], differ: bool
):
    one, other = (load_run_config(file, [*always, f"--{key}={value}"]) for value in values)
    assert (settings_hash(one) != settings_hash(other)) == differ


@pytest.mark.parametrize(
    ("names", "key", "values", "differ"),
    [
        (("ridge",), "model.d_model", ("8", "16"), False),
        (("ridge",), "data.seq_len", ("40", "48"), True),
        (("dlinear",), "train.max_steps", ("3", "4"), False),
        (("patchtst",), "train.max_steps", ("3", "4"), True),
        (("ridge", "retrieval"), "gram.top_k", ("3", "4"), True),  # with the model's memory off
        (("ridge",), "gram.top_k", ("3", "4"), False),
        (("ridge_retrieval",), "model.anchor_rows", ("100", "200"), True),
        (("retrieval", "ridge"), "model.anchor_rows", ("100", "200"), False),
        (("retrieval",), "gram.retrieval_scope", ("source", "both"), False),  # of one source
    ],
)
def test_a_baseline_is_run_again_only_for_what_it_reads(
    file: Path, names: tuple[str, ...], key: str, values: tuple[str, str], differ: bool
):
    one, other = (load_run_config(file, [f"--{key}={value}"]) for value in values)
    assert (settings_hash(one, names) != settings_hash(other, names)) == differ
    assert settings_hash(one, names) != settings_hash(one)


@pytest.mark.parametrize("name", ["ridge_retrieval", "retrieval"])
def test_where_neighbours_come_from_counts_among_several_sources(tmp_path: Path, name: str):
    run = run_over_sources(tmp_path)
    own = replace(run, gram=replace(run.gram, retrieval_scope="source"))
    assert settings_hash(run, [name]) != settings_hash(own, [name])
    assert settings_hash(run, ["ridge"]) == settings_hash(own, ["ridge"])


def test_the_hash_of_a_cell_is_that_of_earlier_versions():
    run = RunConfig(
        model=ModelConfig(d_model=8), gram=GramConfig(use_gram=False, retrieval_scope="source")
    )
    assert settings_hash(run) == "24d2f933"
    assert settings_hash(run, ["ridge_retrieval"]) == "e719f286"


def test_a_run_of_another_grid_with_the_same_settings_is_found_again(file: Path, tmp_path: Path):
    more = [f"--runs_dir={tmp_path}"]
    first = plan_of(file, [Row(name="base", keys=())], more=more).trainings[0]
    first.folder.mkdir(parents=True)
    later = plan_of(file, [Row(name="pretrained", keys=("--backbone.kind=pretrained",))], more=more)
    assert later.trainings[0].folder == first.folder


def test_a_row_without_a_memory_is_anchored_to_the_plain_ridge(tmp_path: Path):
    file = tmp_path / "memory.yaml"
    quickstart = Path(__file__).parents[3] / "configs/quickstart.yaml"
    file.write_text(f"extends: {quickstart}\n")
    plan = make_plan(str(file), [], read_grid("modules"), num_seeds=1)
    anchors = [(v.row.name, v.cells[0].config.model.anchor) for v in plan.variants]
    with_memory = "ridge_retrieval"
    assert anchors == [
        ("baseline", "ridge"), ("TAPR", "ridge"), ("GRA-M", with_memory), ("both", with_memory),
    ]  # fmt: skip
    assert "--model.anchor=ridge" in plan.variants[0].row.keys  # and the table shows it
    keys = ("--gram.use_gram=false", "--model.anchor_weights=shared")  # names no anchor
    (variant,) = plan_of(file, [Row(name="shared", keys=keys)]).variants
    assert variant.cells[0].config.model.anchor == "ridge"


def test_learning_rates_are_tried_for_every_row_and_for_patchtst(file: Path):
    plan = plan_of(
        file, seeds=2, learning_rates=[1e-3, 1e-4],
        baselines=[("ridge", "repeat_last"), ("dlinear",), ("patchtst",)],
    )  # fmt: skip
    assert [v.learning_rate for v in plan.variants] == [1e-3, 1e-4, 1e-3, 1e-4]
    assert len(plan.trainings) == 8
    kept = [(v.row.name, len(v.cells), v.learning_rate) for v in plan.baselines]
    assert kept == [
        ("baselines", 1, 1e-3), ("dlinear", 2, 1e-3), ("patchtst", 2, 1e-3), ("patchtst", 2, 1e-4),
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [0.000316227766, 1 / 3, 1e-5, 3.0])
def test_a_run_is_started_with_the_rate_that_was_planned(file: Path, rate: float):
    plan = plan_of(file, seeds=1, learning_rates=[rate], baselines=[("patchtst",)])
    for variant in (*plan.variants, *plan.baselines):
        (cell,) = variant.cells
        started = load_run_config(file, cell.arguments)
        assert started.train.learning_rate == cell.config.train.learning_rate == rate
        assert cell.has_settings_of(started)


def test_a_row_that_may_spend_more_is_told(file: Path):
    rows = [Row(name="a", keys=()), Row(name="b", keys=("--train.max_steps=99",))]
    assert differing_budget(plan_of(file, rows)) == ["b: train.max_steps=99"]
    assert differing_budget(plan_of(file)) == []


def test_the_lines_for_an_array_are_the_cells(file: Path, tmp_path: Path):
    more = ["--data.description", 'half hourly, "two" words']
    plan = plan_of(file, more=more)
    lines = [line for line in lines_of(plan).splitlines() if not line.startswith("#")]
    assert len(lines) == len(plan.trainings)
    for line, cell in zip(lines, plan.trainings, strict=True):
        assert load_run_config(file, split_line(line)) == cell.config
    path = tmp_path / "cells.grid"
    path.write_text(lines_of(plan).replace("--name=seed", "--name=x"))  # and a grid itself
    assert "half hourly" in path.read_text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("--tapr.n_scale=2",), "row wrong: Unknown key tapr.n_scale: did you mean"),
        (("--tapr.n_scales=9",), r"row wrong: tapr\.n_scales must be in \[2, 5\], got 9"),
    ],
)
def test_a_row_that_is_no_configuration_is_refused_by_its_name(
    file: Path, keys: tuple[str, ...], message: str
):
    with pytest.raises(ConfigError, match=message):
        plan_of(file, [Row(name="wrong", keys=keys)])


def test_no_seed_is_refused(file: Path):
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        make_plan(str(file), [], Grid(name="x", rows=()), num_seeds=0)


def test_what_is_said_of_a_source_is_in_the_hash(tmp_path: Path):
    plain = run_over_sources(tmp_path)
    assert settings_hash(plain) == settings_hash(replace(plain, name="another"))
    hashes = {settings_hash(plain), settings_hash(with_a_shorter_horizon(plain))}
    assert plain.data.sources is not None
    fewer = replace(plain, data=replace(plain.data, sources=plain.data.sources[:2]))
    default = SourceConfig(dataset=DataConfig().dataset)
    alike = [replace(plain.data, sources=None), replace(plain.data, sources=[default])]
    hashes |= {settings_hash(one) for one in (fewer, *(replace(plain, data=d) for d in alike))}
    assert len(hashes) == 5


def over_sources(run: RunConfig, *paths: str) -> RunConfig:
    """The same run over sources whose names say nothing of where they lie."""
    sources = [SourceConfig(path=path, name=f"s{n}") for n, path in enumerate(paths)]
    return replace(run, data=replace(run.data, path=None, sources=sources))


def test_a_run_over_other_files_is_no_run_of_the_cell(file: Path):
    own, other = "[{path: a.csv}, {path: b.csv}]", "[{path: a.csv}, {path: c.csv}]"
    more = ["--data.path=null"]
    rows = [Row(name=name, keys=(f"--data.sources={given}",))
            for name, given in (("own", own), ("other", other))]  # fmt: skip
    plan = plan_of(file, rows, seeds=1, more=more, baselines=[("ridge",)])
    first, second = plan.trainings
    assert not first.has_settings_of(second.config)
    run = load_run_config(file)
    for baselines in ([], ["ridge"]):
        one, two = (settings_hash(over_sources(run, "a", last), baselines) for last in "bc")
        assert one != two


def of_root(file: Path, *keys: str) -> Plan:
    """Plan a run of a set of the catalog."""
    more = ["--data.path=null", "--data.dataset=ETTh1", *keys]
    return plan_of(file, [Row(name="base", keys=())], 1, [("ridge",)], more)


def test_a_run_of_the_catalog_in_another_folder_is_another_cell(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    usual, one, other = (of_root(file, *keys) for keys in (
        [], ["--data.root=one"], ["--data.root=other"],
    ))  # fmt: skip
    for plans in ((usual, one), (one, other)):
        for mine, its in zip(*((*p.trainings, *p.baselines[0].cells) for p in plans), strict=True):
            assert mine.folder != its.folder
            assert not mine.has_settings_of(its.config)
    again = of_root(file, f"--data.root={tmp_path}/one")
    assert again.trainings[0].folder == one.trainings[0].folder


def test_the_folder_of_the_machine_may_be_named_by_key_or_variable(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TIMELLM_DATA_ROOT", raising=False)
    by_variable = of_root(file)
    monkeypatch.setenv("TIMELLM_DATA_ROOT", str(tmp_path))
    assert of_root(file, f"--data.root={tmp_path}").trainings[0].folder == (
        by_variable.trainings[0].folder
    )


def test_a_folder_that_nothing_is_read_from_is_not_in_the_name_of_a_cell(file: Path):
    plain, rooted = (plan_of(file, seeds=1, more=more) for more in ([], ["--data.root=x"]))
    embedded = [of_root(file, "--data.dataset=vic_elec", *keys) for keys in ([], ["--data.root=x"])]
    for one, other in ((plain, rooted), embedded):
        assert one.trainings[0].folder == other.trainings[0].folder
