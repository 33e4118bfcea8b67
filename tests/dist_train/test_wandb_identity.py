"""dist_train/wandb_identity.py: one id for a run, a group for an array, no secret sent."""

from pathlib import Path

import pytest

from dist_train import wandb_identity


@pytest.mark.parametrize(
    ("asked", "told", "mode"),
    [
        ("auto", "", "auto"), ("auto", "offline", "offline"), ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"), ("auto", "run", "online"),
        ("online", "offline", "online"), ("disabled", "online", "disabled"),
        ("offline", "", "offline"),
    ],
)  # fmt: skip
def test_what_is_configured_counts_more_than_the_environment(asked: str, told: str, mode: str):
    assert wandb_identity.wanted_mode(asked, {"WANDB_MODE": told}) == mode
    assert wandb_identity.wanted_mode("auto", {}) == "auto"


def test_tasks_of_an_array_are_a_group_named_after_their_grid():
    array = {"SLURM_ARRAY_JOB_ID": "77", "TIMELLM_GRID": "configs/ablation/modules.grid"}
    assert wandb_identity.array_of(array) == ("modules-77", "modules")
    assert wandb_identity.array_of({"SLURM_ARRAY_JOB_ID": "77"}) == ("array-77", "array")
    assert wandb_identity.array_of({"TIMELLM_GRID": "x.grid"}) == (None, "train")


def test_the_id_is_made_once_and_a_torn_one_anew(tmp_path: Path):
    made = wandb_identity.run_id(tmp_path)
    assert wandb_identity.run_id(tmp_path) == made
    (tmp_path / wandb_identity.ID_FILE).write_text("ab")
    other = wandb_identity.run_id(tmp_path)
    assert other not in ("ab", made)
    assert [path.name for path in tmp_path.iterdir()] == [wandb_identity.ID_FILE]


def test_what_sounds_like_a_secret_is_left_out_and_other_words_are_not():
    given = {
        "wandb": {"api_key": "k", "hf_token": "t", "Password": "p"},
        "token_order": "spec", "max_prompt_tokens": 128, "tokens": "all",
        "url": "see https://user:pass@example.org", "list": ["ftp://a:b@c"],
    }  # fmt: skip
    assert wandb_identity.redacted(given) == {
        "wandb": {"api_key": "***", "hf_token": "***", "Password": "***"},
        "token_order": "spec", "max_prompt_tokens": 128, "tokens": "all",
        "url": "see https://***@example.org", "list": ["ftp://***@c"],
    }  # fmt: skip
