"""What an online run refuses before anything is read or compiled."""

import dataclasses

import jax
import pytest

from tests.train.tiny_runs import MODEL, PLAIN
from xpo_jax.config import experiment
from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Pretrained, Scratch, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.records import Prompt
from xpo_jax.feedback import rules
from xpo_jax.models import transformer
from xpo_jax.models.config import Activation, Norm
from xpo_jax.ops import kl_control
from xpo_jax.train import (
  online,
  online_setup,
  pair_construction,
  preflight,
  run_directory,
  validate,
)

RUN = experiment.replace(PLAIN, objective=ObjectiveConfig("ppo"))
ONE = Sampling(completions=1)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (
      {"objective": ObjectiveConfig("rloo"), "sampling": ONE},
      "rloo learns nothing.*2 or more",
    ),
    (
      {"objective": ObjectiveConfig("dpo"), "sampling": ONE},
      "dpo learns nothing.*2 or more",
    ),
    ({"objective": ObjectiveConfig("kto")}, "layout RATED_MISMATCHED; rollouts become"),
    (
      {"pair_construction": Configured(pair_construction.best)},
      "ppo needs layout SAMPLED.*makes DEMO",
    ),
    (
      {"kl_controller": Configured(kl_control.fixed_kl, beta=0.5)},
      "beta 0.5, ppo has beta",
    ),
    (
      {
        "objective": ObjectiveConfig("raft"),
        "kl_controller": Configured(kl_control.fixed_kl, beta=0.5),
      },
      "raft has no number beta",
    ),
    (
      {"pair_construction": Configured(kl_control.fixed_kl, beta=0.1)},
      "arrange is .*makes Controller;",
    ),
    (
      {"kl_controller": Configured(pair_construction.best)},
      "controller is .*best.*makes Arrangement;",
    ),
    # 4 prompts x 2 completions: beta (1 - 0.2 * 8 / 1.6) = 0.
    (
      {"kl_controller": Configured(kl_control.adaptive_kl, beta=0.02, horizon=1.6)},
      "beta from 0.02 to 0 .*of 8 completions.*raise horizon above max_error x 8",
    ),
  ],
)
def test_what_cannot_learn_is_refused_by_name(changes, match):
  with pytest.raises(ValueError, match=match):
    validate.check(experiment.replace(RUN, **changes))


# What the papers put beside samples: ReMax its baseline, XPO the reference's answer.
@pytest.mark.parametrize(
  ("name", "first"),
  [("remax", "greedy"), ("exploratory_dpo", "reference"), ("rloo", "sample")],
)
def test_column_0_is_the_one_that_the_objective_is_made_for(name, first):
  for given in ("sample", "greedy", "reference"):
    sampling = dataclasses.replace(RUN.data.sampling, column0_source=given)
    run = experiment.replace(RUN, objective=ObjectiveConfig(name), sampling=sampling)
    if given == first:
      validate.check(run)
      continue
    match = f"first is '{given}', and {name} is made for '{first}'"
    with pytest.raises(ValueError, match=match):
      validate.check(run)


RATES = Feedback(
  Configured(rules.cyclic_preference, patterns=("a", "b", "c")), kind="win_rates"
)
APART = dataclasses.replace(RATES, include_self=False)
DUEL = experiment.replace(RUN, objective=ObjectiveConfig("ipo_md"), feedback=APART)
MET = dataclasses.replace(RUN.data.sampling, opponent=Opponent())
THREE = dataclasses.replace(RUN.data.sampling, completions=3)


@pytest.mark.parametrize("name", ["sppo", "nash_md", "dno", "ipo_md"])
def test_scores_are_no_win_rates(name):
  with pytest.raises(ValueError, match=f"{name} learns from win rates.*'scores'"):
    validate.check(experiment.replace(RUN, objective=ObjectiveConfig(name)))


@pytest.mark.parametrize("feedback", [RATES, APART])
def test_nobody_is_beaten_alone(feedback):
  nash = dataclasses.replace(
    RUN, objective=ObjectiveConfig("nash_md"), feedback=feedback
  )
  validate.check(nash)
  with pytest.raises(ValueError, match=r"completions is 1 .*beat nobody"):
    validate.check(experiment.replace(nash, sampling=ONE))
  met = dataclasses.replace(ONE, opponent=Opponent())
  validate.check(experiment.replace(nash, sampling=met))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"feedback": RATES}, "include_self is True"),
    ({"sampling": MET}, r"opponent Opponent\("),
    ({"sampling": THREE}, "completions 3"),
  ],
)
def test_a_duel_is_between_two_and_leaves_oneself_out(changes, match):
  validate.check(DUEL)
  with pytest.raises(ValueError, match=f"ipo_md learns from the prob.*{match}"):
    validate.check(experiment.replace(DUEL, **changes))


def test_a_controller_that_leaves_beta_positive_passes():
  # beta (1 - 0.2 * 8 / 1.7) = 0.06 beta
  rule = Configured(kl_control.adaptive_kl, beta=0.02, horizon=1.7)
  validate.check(experiment.replace(RUN, kl_controller=rule))


LEARNED = dataclasses.replace(MODEL, rotary=None, positions=24)
TOO_MANY = Sampling(completions=2, max_completion_tokens=4, top_k=MODEL.vocab + 1)
LONG = Sampling(completions=2, max_completion_tokens=24)


def _after(start) -> Trained:
  data = Data("synthetic:20", rows_per_step=4, row_length=24, steps=1)
  return Stage(Experiment(ObjectiveConfig("sft"), data, start, mesh=MeshShape(data=1)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A checkpoint of 24 learned positions and a tokenizer of letters."""
  where = tmp_path_factory.mktemp("start") / "policy"
  config = dataclasses.replace(
    LEARNED,
    norm=Norm.LAYER,
    activation=Activation.GELU_TANH,
    gated=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
  )
  params = {"lm": transformer.model(config).init(jax.random.key(0))}
  # Without merges a letter is a token.
  run_directory.export(
    where, config, params, synthetic_reviews.train_bpe(["ab"], config.vocab)
  )
  return str(where)


@pytest.mark.parametrize(
  ("model", "sampling", "match"),
  [
    (MODEL, TOO_MANY, "top_k is 321; allowed: 1 to 320"),
    (
      LEARNED,
      LONG,
      "max_completion_tokens is 24: after .* 1 tokens that is 25, .* 24 learned",
    ),
  ],
)
def test_a_stage_is_not_trained_for_a_start_without_room(
  model, sampling, match, tmp_path
):
  run = experiment.replace(RUN, start=_after(Scratch(model)), sampling=sampling)
  with pytest.raises(ValueError, match=match):
    online.train(run, tmp_path / "run", say=lambda text: None)
  assert not (tmp_path / "run").exists()


def test_the_longest_prompt_of_a_known_tokenizer_must_fit(directory, tmp_path):
  datasets = {"rows": [Prompt("0", "x"), Prompt("1", "x" * 18)]}  # BOS, 18 letters
  for max_completion_tokens, fits in ((5, True), (6, False)):
    run = dataclasses.replace(
      RUN,
      prompts=Prompts("rows"),
      start=_after(Pretrained(directory)),
      sampling=Sampling(completions=2, max_completion_tokens=max_completion_tokens),
    )
    if fits:
      validate.load(run, datasets)
      continue
    match = "a prompt of 19 tokens that is 25, .* 24 learned"
    with pytest.raises(ValueError, match=match):
      validate.load(run, datasets)


def test_check_refuses_prompts_that_do_not_fit_a_tokenizer_made_there():
  """A prompt of BOS and a letter is longer than the one token known before."""
  datasets = {"rows": [Prompt("0", "x")]}
  five = Scratch(dataclasses.replace(LEARNED, positions=5))
  run = experiment.replace(RUN, prompts=Prompts("rows"), start=five)
  validate.load(run, datasets)
  with pytest.raises(ValueError, match=r"of 2 tokens that is 6, .* 5 learned"):
    preflight.check(run, datasets)


def test_a_rating_is_brought_by_its_arrangement_alone():
  cringe = experiment.replace(RUN, objective=ObjectiveConfig("cringe"))
  rated = dataclasses.replace(
    cringe, pair_construction=Configured(pair_construction.rated_by_threshold)
  )
  with pytest.raises(ValueError, match=r"layout RATED; rollouts become"):
    validate.check(cringe)
  # One completion is enough for a rating, and not for a best and a worst.
  for made, completions in ((rated, 2), (rated, 1)):
    sampling = dataclasses.replace(ONE, completions=completions)
    validate.check(dataclasses.replace(made, sampling=sampling))
  extremes = dataclasses.replace(
    cringe,
    pair_construction=Configured(pair_construction.rated_best_worst),
    sampling=ONE,
  )
  with pytest.raises(ValueError, match=r"cringe learns nothing.*2 or more"):
    validate.check(extremes)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_one_completion_is_enough_without_a_group_baseline(name):
  validate.check(experiment.replace(RUN, objective=ObjectiveConfig(name), sampling=ONE))


def test_empty_prompt_set_is_refused_and_leaves_no_directory(tmp_path):
  empty = dataclasses.replace(
    RUN, prompts=Prompts("none"), start=Scratch(MODEL, tokenizer=None)
  )
  with pytest.raises(ValueError, match="holds no prompt"):
    online.train(empty, tmp_path / "run", datasets={"none": []}, say=lambda text: None)
  assert not (tmp_path / "run").exists()


def test_equal_prompts_count_once_and_the_held_out_share_is_apart(tmp_path):
  rows = [Prompt(f"row {i}", f"prompt {i % 12}") for i in range(24)]
  held = dataclasses.replace(
    RUN,
    prompts=Prompts("rows"),
    evaluation=dataclasses.replace(RUN.evaluation, share=0.25),
  )
  loaded = online_setup.inputs.load(held.prompts, held.prompts, {"rows": rows})
  run = online_setup.prepare(held, tmp_path, loaded)
  train, apart = set(run.prompts.texts), set(run.held_out.texts)
  assert not train & apart and len(train) + len(apart) == 12
  assert run.counts["prompts"] == len(train) == len(run.prompts.ids)


def test_portions_of_the_data_share_no_prompt_and_a_limit_counts_prompts(tmp_path):
  rows = [Prompt(f"row {i}", f"prompt {i // 2}") for i in range(200)]
  apart = dataclasses.replace(
    RUN,
    prompts=Prompts("rows", portion="train"),
    evaluation=Evaluation("rows", portion="test", limit=5),
  )
  loaded = online_setup.inputs.load(apart.prompts, apart.prompts, {"rows": rows})
  run = online_setup.prepare(apart, tmp_path, loaded, datasets={"rows": rows})
  train, test = set(run.prompts.texts), set(run.held_out.texts)
  assert not train & test and len(test) == 5
  assert 60 < len(train) < 100  # about 80 of 100
