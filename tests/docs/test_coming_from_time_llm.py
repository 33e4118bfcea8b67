"""docs/coming_from_time_llm.md: every flag of run_main.py leads to a key that there is."""

import re

from dist_train.config import RunConfig, _keys
from tests.docs.markdown import ROOT, quoted, rows, sections

# All of run_main.py of KimMeen/Time-LLM at commit 0045cde, in its order.
FLAGS = """
task_name is_training model_id model_comment model seed data root_path data_path features target
loader freq checkpoints seq_len label_len pred_len seasonal_patterns enc_in dec_in c_out d_model
n_heads e_layers d_layers d_ff moving_avg factor dropout embed activation output_attention patch_len
stride prompt_domain llm_model llm_dim num_workers itr train_epochs align_epochs batch_size
eval_batch_size patience learning_rate des loss lradj pct_start use_amp llm_layers percent
"""
PAGE = (ROOT / "docs" / "coming_from_time_llm.md").read_text()
ROWS = [row for row in rows(sections(PAGE)["Every flag"]) if row[0].startswith("`--")]
KEYS = set(_keys(RunConfig))
LAUNCH = {"--num_processes", "--mixed_precision", "--main_process_port"}


def test_every_flag_has_one_row():
    told = [flag for row in ROWS for flag in quoted(row[0]) if flag not in LAUNCH]
    assert sorted(told) == sorted(f"--{flag}" for flag in FLAGS.split())


def test_every_flag_leads_to_a_key_or_says_why_not():
    for flags, here, remark in ROWS:
        named = [word for word in quoted(here) if re.fullmatch(r"[\w.]+", word)]
        assert set(named) <= KEYS, f"{flags}: {set(named) - KEYS} is no key"
        if here == "none":
            assert remark, f"{flags} has no counterpart, and no reason"
        else:
            assert quoted(here) or flags == "`--num_processes`", flags


def test_as_many_keys_as_flags_where_the_names_are_told_in_order():
    for flags, here, _ in ROWS:
        named = [word for word in quoted(here) if word in KEYS]
        assert len(named) in (0, 1, len(quoted(flags))), flags
