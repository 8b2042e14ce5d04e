"""An experiment refuses what it cannot do, and names its stages."""

import pytest

from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer, Precision
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.feedback import reward_model
from xpo_jax.models.lora import Adapter
from xpo_jax.train import validate

SOURCE = Configured("xpo_jax.feedback.rules:synthetic_reward")
RECORDS = Experiment(ObjectiveConfig("dpo"), Data("pairs.jsonl"), Pretrained("policy"))
ROLLOUTS = Experiment(
  objective=ObjectiveConfig("ppo", beta=0.02),
  data=Rollouts(prompts=Prompts("prompts.jsonl"), feedback=Feedback(SOURCE)),
  start=Pretrained("policy"),
)


def _aux_loss(**changes):
  fields = {"weight": 1.0, "objective": ObjectiveConfig("sft"), "data": Data("x")}
  return AuxLossConfig(**fields | changes)


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: experiments.replace(RECORDS, seed=-1), "Experiment.seed is -1"),
    (lambda: MeshShape(fsdp=0), "MeshShape.fsdp is 0"),
    (
      lambda: Pretrained("policy", remat=False),
      r"Pretrained.remat is False; allowed: .*'dots'.*; instead of False give 'none'",
    ),
    (lambda: Pretrained("policy", remat="dot"), "Pretrained.remat is 'dot'; allowed: "),
    (lambda: Loop(log_every=0), "Loop.log_every is 0"),
    (lambda: Loop(checkpoint_minutes=0), "Loop.checkpoint_minutes is 0"),
    (lambda: Loop(checkpoint_minutes=float("nan")), "Loop.checkpoint_minutes is nan"),
    (lambda: _aux_loss(weight=0.0), "AuxLossConfig.weight is 0.0"),
    (lambda: _aux_loss(name="two words"), "AuxLossConfig.name is 'two words'"),
    (
      lambda: experiments.replace(RECORDS, aux_losses=(_aux_loss(), _aux_loss())),
      "two aux_losses are called 'text'",
    ),
  ],
)
def test_bad_value_is_refused_by_field(make, says):
  with pytest.raises(ValueError, match=says):
    make()


@pytest.mark.parametrize(
  ("sizes", "match"),
  [
    ({"minibatches": 3}, "prompts_per_iteration = 32"),
    ({"minibatches": 4, "microbatches": 3}, "8 prompts of a minibatch"),
    ({"iterations": 0}, "iterations is 0"),
    ({"iterations": 1.5}, "iterations is 1.5; .* whole"),
    ({"ref_update_every": 0}, "ref_update_every is 0"),
  ],
)
def test_sizes_of_rollouts_that_do_not_divide_are_refused(sizes, match):
  with pytest.raises(ValueError, match=match):
    experiments.replace(ROLLOUTS, **sizes)


def test_base_in_bfloat16_needs_an_adapter_and_a_reference_that_stays():
  precision = Precision(base="bfloat16")
  with pytest.raises(ValueError, match=r"Precision.base is 'bfloat16'.*adapter None"):
    experiments.replace(RECORDS, precision=precision)
  with pytest.raises(ValueError, match=r"Precision.base is 'bfloat16'.*every 3"):
    experiments.replace(
      ROLLOUTS, precision=precision, adapter=Adapter(), ref_update_every=3
    )
  with pytest.raises(ValueError, match=r"Precision.base is 'float16'; allowed"):
    Precision(base="float16")


def test_overlong_buffer_longer_than_completions_is_refused():
  feedback = Feedback(SOURCE, overlong_buffer=9)
  with pytest.raises(ValueError, match=r"overlong_buffer is 9, above .* = 8"):
    sampling = Sampling(max_completion_tokens=8)
    experiments.replace(ROLLOUTS, feedback=feedback, sampling=sampling)


def test_opponent_needs_win_rates_and_an_average_that_exists():
  sampling = Sampling(opponent=Opponent(share=0.5, of="average"))
  with pytest.raises(ValueError, match=r"needs Feedback.kind .* 'scores'"):
    experiments.replace(ROLLOUTS, sampling=sampling)
  run = experiments.replace(
    ROLLOUTS,
    objective=ObjectiveConfig("nash_md"),
    sampling=sampling,
    feedback=Feedback(SOURCE, kind="win_rates"),
  )
  with pytest.raises(ValueError, match=r"Optimizer.ema"):
    validate.check_rollouts(run, {})
  run = experiments.replace(run, optimizer=Optimizer(ema=0.5), adapter=Adapter())
  with pytest.raises(ValueError, match="mean of an adapter's factors"):
    validate.check_rollouts(run, {})


def test_replace_reaches_fields_of_the_data_by_name():
  changed = experiments.replace(ROLLOUTS, iterations=7, seed=3)
  assert changed.data.iterations == 7 and changed.seed == 3
  assert changed.data.prompts == ROLLOUTS.data.prompts
  both = experiments.replace(ROLLOUTS, data=changed.data, minibatches=4)
  assert both.data.iterations == 7 and both.data.minibatches == 4
  with pytest.raises(
    ValueError, match="Experiment and Data have no field 'iterations'"
  ):
    experiments.replace(RECORDS, iterations=7)


def test_stages_are_found_wherever_weights_are_asked_for():
  sft, reward = Stage(RECORDS), Stage(experiments.replace(RECORDS, seed=1))
  judge = Configured(reward_model.scorer, directory=reward)
  run = experiments.replace(
    ROLLOUTS,
    start=sft,
    reference=sft,
    feedback=Feedback(judge),
    critic_init=reward,
  )
  # The start's own stages are its business.
  nested = experiments.replace(run, start=Stage(run))
  assert dict(experiments.stages(nested)) == {
    "data.feedback.source.directory": reward,
    "data.critic_init": reward,
    "start": Stage(run),
    "reference": sft,
  }


def test_records_and_rollouts_say_what_a_run_reads():
  assert RECORDS.data.source is RECORDS.data
  assert ROLLOUTS.data.source is ROLLOUTS.data.prompts
  assert RECORDS.data.feedback is None and RECORDS.data.temperature == 1
  assert ROLLOUTS.data.max_completion_tokens == 64
  assert (
    "prompts.jsonl, by xpo_jax.feedback.rules:synthetic_reward" in ROLLOUTS.data.title
  )
