"""dist_train/config.py: precedence, extends, round trip, and refusals that name key and remedy."""

import re
import time
from pathlib import Path

import pytest

from dist_train.config import (
    ConfigError,
    DeepSpeedConfig,
    RunConfig,
    TrainConfig,
    build_parser,
    check_batch_size,
    config_to_yaml,
    load_run_config,
    parse_run_config,
)
from dist_train.data.config import DataConfig, SourceConfig
from model.config import GramConfig, ModelConfig


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_command_line_beats_file_beats_extended_file_beats_default(tmp_path: Path):
    write(tmp_path, "train: {seed: 1, patience: 2, batch_size: 4}", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\ntrain: {seed: 5, patience: 6}")
    train = load_run_config(path, ["--train.seed", "9"]).train
    assert (train.seed, train.patience, train.batch_size) == (9, 6, 4)
    assert train.max_epochs == TrainConfig().max_epochs


def test_profile_is_short_for_its_key_wherever_it_stands(tmp_path: Path):
    path = write(tmp_path, "train: {profile: false}")
    for argv in (["--profile", "--config", str(path)], ["--config", str(path), "--profile"]):
        assert parse_run_config(build_parser("timellm train"), argv)[0].train.profile is True
    assert load_run_config(path).train.profile is False


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path):
    path = write(tmp_path, "train: {learning_rate: 1e-4}")
    assert load_run_config(path).train.learning_rate == 1e-4


def test_the_resolved_configuration_loads_back_equal(tmp_path: Path):
    path = write(tmp_path, "name: a\ndata: {splits: [0.6, 0.2, 0.2]}\ntrain: {max_steps: 3}")
    config = load_run_config(path)
    assert load_run_config(write(tmp_path, config_to_yaml(config), "saved.yaml")) == config


def test_the_resolved_configuration_extends_nothing(tmp_path: Path):
    write(tmp_path, "train: {seed: 1}", "base.yaml")
    config = load_run_config(write(tmp_path, "extends: base.yaml"))
    assert config.extends is None
    (tmp_path / "base.yaml").unlink()
    saved = load_run_config(write(tmp_path, config_to_yaml(config), "saved.yaml"))
    assert saved.train.seed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {patients: 3}", "Unknown key train.patients: did you mean train.patience?"),
        ("trian: {patience: 3}", "did you mean train.patience?"),
        ("zzz: 3", "Unknown key zzz: see --help"),
        ("train: {patience: many}", "train.patience=many: expected"),
        ("train: {patience: 0}", "train.patience must be at least 1, got 0"),
        ("train: {profile_steps: 0}", "train.profile_steps must be at least 1, got 0"),
        ("train: {watchdog_s: 1}", "train.watchdog_s must be at least 5 seconds, .*got 1"),
        ("train: {watchdog_s: .inf}", "train.watchdog_s must be a finite number, got inf"),
        ("train: {watchdog_s: .nan}", "train.watchdog_s must be a finite number, got nan"),
        ("train: {timeout_s: 60}", "Unknown key train.timeout_s"),
        ("train: {learning_rate: -1}", "train.learning_rate must be positive, got -1"),
        ("model: {stride: 40}", "model.stride must be in .1, patch_len=16., got 40"),
        ("data: {seq_len: 8}", "data.seq_len=8 is shorter than one patch .model.patch_len=16."),
        ("deepspeed: {zero_stage: 4}", "deepspeed.zero_stage must be 0, 1, 2 or 3, got 4"),
        ("deepspeed: {zero_stage: 2, offload: all}", "needs deepspeed.zero_stage=3, got 2"),
        ("name: ../other", "name must be letters, digits"),
        ("extends: nowhere.yaml", "nowhere.yaml: No such file"),
        ("extends: run.yaml", "extend each other in a circle"),
        ("extends: 3", "extends in .* must be the path of a file, got 3"),
        ("[1, 2", "not a YAML file"),
        ("", "holds no keys"),
        ("train: {seed: 1, seed: 2}", "run.yaml: train.seed is given twice"),
        ("train: null", "train=None in .*run.yaml: a section; write its keys below it"),
        ("train: other.yaml", "train='other.yaml' in .*run.yaml: a section"),
        ("config: other.yaml", "Unknown key config"),
        ("data: {class_path: os.system}", "Unknown key data.class_path"),
        ("name: null", "name=null: needs a value; name is: Name of the run"),
        ("train: {seed: null}", "train.seed=null: needs a value"),
        ("train: {weight_decay: .nan}", "train.weight_decay must be a finite number, got nan"),
        ("train: {learning_rate: .inf}", "train.learning_rate must be a finite number, got inf"),
        ("data: {splits: [.nan, .nan, .nan]}", "data.splits must be a finite number, got nan"),
        ("train: {seed: 1" + "0" * 30 + "}", "train.seed must be at most 9223372036854775807"),
        ("train: {learning_rate: 1" + "0" * 350 + "}", "train.learning_rate must be at most"),
        ("train: {watchdog_s: 1.0e300}", "train.watchdog_s must be at least .* at most a year"),
        ('data: {path: "a\\0b"}', "data.path='a..00b': holds a sign that no file can be named"),
        ('data: {description: "\\ud800"}', "data.description=.* holds a sign that no file"),
        ("data: {path: 'http://me:pw@host/a.csv'}", r"data.path=http://\*\*\*@host/a.csv: holds a"),
        ('extends: "a\\0b"', "extends='a..00b': holds a sign that no file can be named"),
    ],
)
def test_refuses(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        load_run_config(write(tmp_path, text))


def test_a_refusal_is_one_line(tmp_path: Path):
    for text in ("a: [", "train: {patience: [1, 2]}", "data: {layout: x}", "a: !!python/none x"):
        with pytest.raises(ConfigError) as caught:
            load_run_config(write(tmp_path, text))
        assert "\n" not in str(caught.value)


def test_a_number_of_the_command_line_that_no_float_holds_is_refused():
    with pytest.raises(ConfigError, match="a number of the command line is too large"):
        parse_run_config(build_parser("timellm"), ["--train.learning_rate", "1" + "0" * 400])


def test_a_long_text_is_read_in_a_moment(tmp_path: Path):
    path = write(tmp_path, f"data: {{root: {'x' * 70_000}, description: {'a://' * 20_000}}}")
    started = time.process_time()
    assert load_run_config(path).data.root == "x" * 70_000
    assert time.process_time() - started < 3


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="--config .*loop.yaml: (Too many|Symlink loop)"):
        load_run_config(tmp_path / "loop.yaml")


def test_refuses_an_abbreviated_key_on_the_command_line():
    with pytest.raises(ConfigError, match="train.learning_rat: did you mean train.learning_rate"):
        parse_run_config(build_parser("timellm"), ["--train.learning_rat", "1"])


def test_refuses_a_key_without_its_section():
    with pytest.raises(ConfigError, match="learning_rate: did you mean train.learning_rate"):
        parse_run_config(build_parser("timellm"), ["--learning_rate", "1"])


def test_the_batch_divides_over_ranks_and_micro_batches():
    assert check_batch_size(TrainConfig(batch_size=12), 3) == 4
    assert check_batch_size(TrainConfig(batch_size=12, micro_batch_size=2), 3) == 2
    with pytest.raises(ConfigError, match="train.batch_size=12 does not divide over 5 ranks"):
        check_batch_size(TrainConfig(batch_size=12), 5)
    with pytest.raises(ConfigError, match="train.micro_batch_size=3 does not divide the 4"):
        check_batch_size(TrainConfig(batch_size=12, micro_batch_size=3), 3)


def test_offload_of_the_optimizer_needs_a_stage():
    with pytest.raises(ValueError, match="offload=optimizer needs"):
        DeepSpeedConfig(zero_stage=0, offload="optimizer")


def test_every_field_has_a_help_text():
    text = build_parser("timellm").format_help()
    for key in ("train.patience", "data.seq_len", "model.stride", "backbone.llm_layers"):
        assert f"--{key}" in text
    assert "Validations without improvement before the run stops" in " ".join(text.split())


def test_the_run_folder_lies_in_runs_dir():
    assert RunConfig(name="a", runs_dir="b").run_folder == Path("b/a")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{dataset: a, wieght: 3}]", r"Unknown key data.sources[0].wieght: did you mean "
                                      "data.sources[0].weight?"),
        ("[{dataset: a}, {zzz: 1}]", "Unknown key data.sources[1].zzz: the keys there are columns"),
        ("[{dataset: a}, {weight: heavy}]", "data.sources[1].weight=heavy: expected a "
         "number; data.sources[1].weight is: How often its windows are drawn"),
        ("[{weight: -1}]", "data.sources[0].weight must be positive, got -1.0: percent=0 keeps"),
        ("[{weight: .nan}]", "data.sources[0].weight must be a finite number, got nan"),
        ("[{weight: null}]", "data.sources[0].weight=null: needs a value; data.sources[0]"),
        ("[{percent: 101}]", "data.sources[0].percent must be in [0, 100], got 101"),
        ("[{percent: 1.5}]", "data.sources[0].percent=1.5: expected a whole number; data"),
        ("[{memory_percent: -1}]", "data.sources[0].memory_percent must be in [0, 100], got -1"),
        ("[{splits: [1, 2]}]", "data.sources[0].splits must be three positive shares"),
        ("[{columns: a}]", "data.sources[0].columns=a: not one of its values; data.sources"),
        ("[{too_short: skpi}]", "data.sources[0].too_short=skpi: must be one of 'error', 'skip'; "
                                "did you mean skip?"),
        ("[{name: a/b}]", "data.sources[0].name='a/b': must be a word without /"),
        ("[{path: ''}]", "data.sources[0].path is empty: name a file, a folder or a pattern"),
        ("[{path: 'http://me:pw@host/x'}]", "data.sources[0].path=http://***@host/x: holds a user"),
        ('[{path: "a\\0b"}]', "data.sources[0].path='a\\x00b': holds a sign that no file"),
        ("[ETTh1]", "data.sources[0]='ETTh1': write its keys, such as dataset: ETTh1"),
        ("{dataset: a}", "data.sources={'dataset': 'a'}: needs a list, an entry for each"),
        ("3", "data.sources=3: needs a list"),
        ("[]", "data.sources is empty: name at least one"),
        ("[{dataset: a}, {dataset: a}]", "data.sources names 'a' twice"),
        ("[{dataset: a, dataset: b}]", "dataset is given twice; leave one of them out"),
        ("[{dataset: !!python/name:os.system x}]", "tags such as"),
    ],
)  # fmt: skip
def test_an_entry_of_a_list_is_refused_with_its_number_key_and_value(
    tmp_path: Path, entries: str, message: str
):
    path = write(tmp_path, f"data:\n  sources: {entries}\n")
    with pytest.raises(ConfigError, match=re.escape(message)) as in_file:
        load_run_config(path)
    for argv in (["--data.sources", entries], [f"--data.sources={entries}"]):
        with pytest.raises(ConfigError, match=re.escape(message)) as given:
            parse_run_config(build_parser("timellm"), argv)
        assert "\n" not in str(given.value)
    assert "\n" not in str(in_file.value)


def test_an_entry_may_be_changed_or_added_on_the_command_line(tmp_path: Path):
    path = write(tmp_path, "data: {sources: [{dataset: ETTh1, weight: 1e-3}]}")
    config = load_run_config(path, ["--data.sources+", "{dataset: ETTh2}"])
    assert config.data.sources is not None
    assert [(one.dataset, one.weight) for one in config.data.sources] == [
        ("ETTh1", 0.001), ("ETTh2", 1.0),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"data.sources\[0\].weight must be positive, got -3.0"):
        load_run_config(path, ["--data.sources.weight", "-3"])
    with pytest.raises(ConfigError, match=r"Unknown key data.sources\[0\].wieght"):
        load_run_config(path, ["--data.sources+={wieght: 3}"])


def test_a_path_of_a_source_may_begin_at_the_file_that_names_it(tmp_path: Path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "mine").mkdir()
    entries = "[{path: ./a b, weight: 1e-3}, {path: c}, {path: '~/d'}, {dataset: ETTh1}]"
    write(tmp_path / "corpus", f"data: {{sources: {entries}}}", "sources.yaml")
    path = write(tmp_path / "mine", "extends: ../corpus/sources.yaml\ndata: {seq_len: 96}")
    config = load_run_config(path)
    assert config.data.seq_len == 96
    assert config.data.sources is not None
    first, *others = config.data.sources
    assert first.path is not None
    assert Path(first.path).resolve() == tmp_path / "corpus" / "a b"
    assert first.weight == 0.001
    assert [one.path for one in others] == ["c", "~/d", None]
    saved = write(tmp_path, config_to_yaml(config), "saved.yaml")
    assert load_run_config(saved) == config
    own = load_run_config(path, ["--data.sources", "[{path: ./x}]"])
    assert own.data.sources is not None
    assert own.data.sources[0].path == "x"
    assert load_run_config(write(tmp_path, config_to_yaml(own), "saved.yaml")) == own


def test_sources_of_a_file_replace_those_of_the_one_it_extends(tmp_path: Path):
    write(tmp_path, "data: {sources: [{path: ./a}, {path: ./b}]}", "base.yaml")
    path = write(tmp_path, "extends: base.yaml\ndata: {sources: [{dataset: ETTh1}]}")
    config = load_run_config(path)
    assert config.data.sources is not None
    assert [one.dataset for one in config.data.sources] == ["ETTh1"]
    assert config.data.sources[0].path is None


@pytest.mark.parametrize("names", [None, ["ETTh1"]])
def test_one_source_has_no_others_to_retrieve_from(names: list[str] | None):
    sources = None if names is None else [SourceConfig(dataset=name) for name in names]
    with pytest.raises(ValueError, match=r"gram\.retrieval_scope=across: .* use gram.*=both, or"):
        RunConfig(data=DataConfig(sources=sources), gram=GramConfig(retrieval_scope="across"))
    off = GramConfig(retrieval_scope="across", use_gram=False)
    assert RunConfig(data=DataConfig(sources=sources), gram=off).gram == off


def test_all_options_of_the_anchor_go_with_sources():
    data = DataConfig(sources=[SourceConfig(dataset="ETTh1")])
    model = ModelConfig(
        anchor_weights="individual", anchor_calendar="day", anchor_random_features=8
    )
    assert RunConfig(data=data, model=model).model == model


def test_several_sources_may_retrieve_across(tmp_path: Path):
    path = write(
        tmp_path,
        "data: {sources: [{dataset: ETTh1}, {dataset: ETTm1}]}\ngram: {retrieval_scope: across}",
    )
    assert load_run_config(path).gram.retrieval_scope == "across"
