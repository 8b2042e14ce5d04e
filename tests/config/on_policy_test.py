"""An online experiment survives YAML, takes flags, and refuses what cannot be meant."""

import math

import pytest

from xpo_jax.config import experiment, yaml_file
from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Pretrained, Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.data.tokenise import Limits
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import kl_control


def pair_of(first: object, others: tuple = (), scale: float = 1.0):
  """What a `Configured` makes, for these tests."""
  return first, others, scale


SOURCE = Configured(
  pair_of, first=Configured(pair_of, first=1), others=[Configured(pair_of, first=2)]
)
RUN = Experiment(
  objective=ObjectiveConfig("ppo", beta=0.02),
  data=Rollouts(
    prompts=Prompts("prompts.jsonl", limits=Limits(prompt=32)),
    feedback=Feedback(SOURCE, missing_eos=1.0),
    kl_controller=Configured(kl_control.adaptive_kl, beta=0.02),
  ),
  start=Pretrained("policy"),
)


def test_experiment_survives_yaml(tmp_path):
  yaml_file.write(tmp_path, RUN)
  again, _ = yaml_file.read(tmp_path)
  dicts = map(yaml_file.to_dict, (again, RUN))
  assert yaml_file.difference(*dicts) == []
  assert again.feedback.source.build() == RUN.data.feedback.source.build()
  assert again.controller == RUN.controller


def test_call_makes_what_it_holds():
  made = SOURCE.build()
  assert made == ((1, (), 1.0), ((2, (), 1.0),), 1.0)


def test_call_refuses_an_argument_the_function_lacks():
  with pytest.raises(
    ValueError, match=r"has no hyperparameter 'target_kl'.*did you mean 'target'"
  ):
    Configured(kl_control.adaptive_kl, beta=0.1, target_kl=6.0)
  with pytest.raises(ValueError, match="needs a value for its hyperparameter beta"):
    Configured(kl_control.adaptive_kl)


def test_flags_reach_calls_and_sampling():
  flags = ["--controller.target", "3", "--sampling.completions", "8"]
  flags += ["--feedback.source.scale", "2", "--feedback.missing-eos", "0.5"]
  changed = yaml_file.from_args(RUN, flags)
  assert changed.controller.build().beta == 0.02
  assert changed.controller.hparams["target"] == 3
  assert changed.sampling.completions == 8
  assert changed.feedback.source.hparams["scale"] == 2
  assert changed.feedback.missing_eos == 0.5


_FIRST = (RUN.objective, RUN.data.prompts, RUN.start, RUN.data.feedback)


def test_a_reward_of_the_cut_may_be_negative():
  assert Feedback(SOURCE, missing_eos=-1.0, missing_eos_rule="replace")


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Sampling(temperature=0.0), "temperature is 0.0"),
    (lambda: Sampling(top_p=1.5), "top_p is 1.5"),
    (lambda: Sampling(staleness=-1), "staleness is -1"),
    (lambda: Sampling(completions=0), "completions is 0"),
    (lambda: Sampling(completions=1, column0_source="greedy"), "at least 2"),
    (lambda: Sampling(column0_source="likeliest"), "'greedy'"),
    (lambda: Opponent(share=1.5), "share is 1.5"),
    (lambda: Sampling(exploration_temperature=0.0), "explore is 0.0"),
    (
      lambda: Sampling(exploration_temperature=2.0, column0_source="greedy"),
      "half of at least 2",
    ),
    (
      lambda: Sampling(exploration_temperature=2.0, completions=1),
      "half of at least 2",
    ),
    (lambda: Sampling(slots=0), "slots is 0"),
    (lambda: Sampling(slots=8, prompts_at_once=4), "slots is 8 and prompts_at_once 4"),
    (lambda: Feedback(SOURCE, kind="ranks"), "'win_rates'"),
    (lambda: Prompts("p", limits=Limits(completion=8)), "max_completion_tokens"),
    (lambda: Prompts("p", seed=-1), "Prompts.seed is -1; .* at least 0"),
    (lambda: OnlineExperiment(*_FIRST, seed=-1), "OnlineExperiment.seed is -1"),
    (lambda: OnlineExperiment(*_FIRST, iterations=1.5), "iterations is 1.5; .* whole"),
    (lambda: Sampling(completions=2.5), "completions is 2.5; .* whole number"),
    (lambda: Sampling(staleness=0.5), "staleness is 0.5; .* whole number"),
    (lambda: Opponent(completions=1.5), "Opponent.completions is 1.5"),
    (lambda: Sampling(temperature=math.inf), "temperature is inf; allowed: a finite"),
    (lambda: Sampling(temperature=math.nan), "temperature is nan; allowed: a finite"),
    (
      lambda: Sampling(exploration_temperature=math.inf),
      "explore is inf; allowed: a finite",
    ),
    (
      lambda: Sampling(exploration_temperature=math.nan),
      "explore is nan; allowed: a finite",
    ),
    (lambda: Feedback(SOURCE, missing_eos=math.inf), "missing_eos is inf; allowed"),
    (lambda: Feedback(SOURCE, missing_eos=math.nan), "missing_eos is nan; allowed"),
    (lambda: Feedback(SOURCE, missing_eos=-1.0), 'paid for being cut.*"replace"'),
  ],
)
def test_value_out_of_range_is_refused_by_name(make, match):
  with pytest.raises(ValueError, match=match):
    make()


@pytest.mark.parametrize(
  ("sizes", "match"),
  [
    ({"minibatches": 3}, "prompts_per_iteration = 32"),
    ({"minibatches": 4, "microbatches": 3}, "8 prompts of a minibatch"),
    ({"iterations": 0}, "iterations is 0"),
    ({"ref_update_every": 0}, "ref_update_every is 0"),
  ],
)
def test_sizes_that_do_not_divide_are_refused(sizes, match):
  with pytest.raises(ValueError, match=match):
    Experiment(
      objective=RUN.objective,
      data=Rollouts(
        prompts=RUN.data.prompts,
        feedback=RUN.data.feedback,
      ),
      start=RUN.start,
      **sizes,
    )


def test_opponent_survives_yaml_and_needs_win_rates(tmp_path):
  sampling = Sampling(opponent=Opponent(share=0.5, of="average"))
  first = (RUN.objective, RUN.data.prompts, RUN.start)
  against = Feedback(SOURCE, kind="win_rates")
  with pytest.raises(ValueError, match=r"needs Feedback.kind .* 'scores'"):
    OnlineExperiment(*first, RUN.data.feedback, sampling)
  with pytest.raises(ValueError, match=r"Optimizer.ema"):
    OnlineExperiment(*first, against, sampling)
  run = OnlineExperiment(*first, against, sampling, optimizer=Optimizer(ema=0.5))
  with pytest.raises(ValueError, match="mean of an adapter's factors"):
    experiment.replace(run, adapter=Adapter())
  yaml_file.write(tmp_path, run)
  assert yaml_file.read(tmp_path)[0].sampling == sampling
  changed = yaml_file.from_args(run, ["--sampling.opponent.share", "0.125"])
  assert changed.sampling.opponent == Opponent(share=0.125, of="average")
  assert yaml_file.from_args(RUN, []).sampling.opponent is None


def test_name_of_an_objective_is_its_name_in_the_index():
  assert experiment.name_of(pair_of).endswith(":pair_of")
