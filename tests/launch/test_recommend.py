"""Down the ladder until a run fits, and no farther."""

import dataclasses

import pytest

from dist_train.config import RunConfig
from launch.memory_plan import MemoryPlan
from launch.recommend import RESERVE, fits, recommend
from model.config import GramConfig, ModelConfig

GIB = 2**30


def plan_of(config: RunConfig) -> MemoryPlan:
    """Weights that the number of blocks makes, and activations that batch and window make."""
    micro = config.train.micro_batch_size or config.train.batch_size
    blocks = config.backbone.llm_layers
    weights = blocks * (0.25 if config.backbone.load_in_4bit else 1.0)
    recompute = 0.1 if config.backbone.activation_checkpointing else 1.0
    training = {
        "weights": weights * GIB,
        "activations": recompute * micro * config.data.seq_len * blocks / 512 * GIB / 16,
    }
    evaluation = {"weights": weights * GIB, "activations": config.train.eval_batch_size * GIB / 64}
    return MemoryPlan(device="gpu", phases={"training": training, "evaluation": evaluation})


def test_what_fits_is_left_as_it_is():
    found = recommend(RunConfig(), plan_of, 100 * GIB)
    assert found.fits
    assert found.taken == ()
    assert found.config == RunConfig()


def test_the_batch_goes_first_and_changes_nothing_else():
    found = recommend(RunConfig(), plan_of, 20 * GIB)
    assert found.fits
    assert {key for rung in found.taken for key in rung.settings} == {"train.micro_batch_size"}
    assert found.config.train.batch_size == RunConfig().train.batch_size


def test_every_rung_is_needed():
    for limit in (15, 10, 6, 4):
        found = recommend(RunConfig(), plan_of, limit * GIB)
        assert found.fits
        assert plan_of(found.config).total == found.plan.total <= (1 - RESERVE) * limit * GIB
        assert found.taken


def test_rungs_that_save_nothing_are_left_out():
    found = recommend(RunConfig(), plan_of, 6 * GIB)
    keys = [key for rung in found.taken for key in rung.settings]
    # In this plan neither widths nor neighbours take memory.
    assert "backbone.llm_layers" in keys
    assert not {"model.d_ff", "model.d_model", "gram.top_k"} & set(keys)


def test_another_phase_may_be_the_one_that_needs_most():
    train = dataclasses.replace(RunConfig().train, eval_batch_size=4096, batch_size=1)
    found = recommend(dataclasses.replace(RunConfig(), train=train), plan_of, 20 * GIB)
    assert found.fits
    assert list(found.taken[0].settings) == ["train.eval_batch_size"]


def test_a_memory_is_dropped_together_with_the_anchor_that_reads_it():
    reading = RunConfig(
        model=ModelConfig(anchor="ridge_retrieval"),
        gram=GramConfig(use_gram=True, retrieval_key="anchored", top_k=1),
    )

    def memory_alone(config: RunConfig) -> MemoryPlan:
        needed = GIB if config.gram.use_gram else GIB / 2
        return MemoryPlan(device="gpu", phases={"training": {"memory": needed}})

    found = recommend(reading, memory_alone, GIB)
    assert found.fits
    assert found.taken[-1].options == "--gram.use_gram false --model.anchor ridge"
    assert (found.config.gram.use_gram, found.config.model.anchor) == (False, "ridge")


def test_settings_that_keep_the_model_are_offered_beside():
    found = recommend(RunConfig(), plan_of, 15 * GIB)
    offered = {rung.options: plan for rung, plan in found.alternatives}
    recomputed = offered["--backbone.activation_checkpointing true"]
    assert recomputed.total < plan_of(RunConfig()).total


def test_the_end_of_the_ladder_is_said():
    found = recommend(RunConfig(), plan_of, GIB // 8)
    assert not found.fits
    assert found.taken


@pytest.mark.parametrize("total", [0.89, 0.91])
def test_a_reserve_is_left(total: float):
    plan = MemoryPlan(device="gpu", phases={"training": {"weights": total * GIB}})
    assert fits(plan, GIB) == (total < 0.9)
