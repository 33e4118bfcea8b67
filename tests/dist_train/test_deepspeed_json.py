"""dist_train/deepspeed_json.py: what DeepSpeed would misread in silence is refused by name."""

import json
from pathlib import Path

import pytest

from dist_train.config import ConfigError
from dist_train.deepspeed_json import load_user_json


def user_file(folder: Path, content: object) -> Path:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_returns_what_is_written(tmp_path: Path):
    own = {"zero_optimization": {"overlap_comm": True}}
    assert load_user_json(user_file(tmp_path, own)) == own


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_cliping": 1}, "unknown key gradient_cliping: did you mean gradient_clipping"),
        ({"train_batch_size": 1}, "train_batch_size follows from train.batch_size"),
        ({"optimizer": {}}, "optimizer follows from train.learning_rate and train.weight_decay"),
        ({"scheduler": {}}, "scheduler follows from train.schedule"),
        ({"gradient_clipping": 5}, "gradient_clipping follows from train.gradient_clipping"),
        ({"fp16": {"enabled": True}}, "fp16 follows from train.precision"),
        ("{", "cannot be read as JSON"),
        ([1], "must hold a JSON object"),
    ],
)
def test_refuses_a_user_file_that_deepspeed_would_misread(
    tmp_path: Path, content: object, message: str
):
    with pytest.raises(ConfigError, match=message):
        load_user_json(user_file(tmp_path, content))


def test_refuses_a_user_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"deepspeed.config_file=nowhere.json: cannot be read"):
        load_user_json(Path("nowhere.json"))
