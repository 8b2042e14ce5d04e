"""What a run is refused for before anything is read or compiled."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from tests.train.tiny_runs import MODEL, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.records import Prompt
from xpo_jax.feedback import rules
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.config import Activation, Norm
from xpo_jax.models.lora import Adapter
from xpo_jax.ops import kl_control
from xpo_jax.train import (
  loop,
  metrics,
  pair_construction,
  rollouts_program,
  validate,
)

RUN = experiments.replace(PLAIN, objective=ObjectiveConfig("ppo"))
ONE = Sampling(completions=1)


def _check(experiment) -> None:
  validate.check_rollouts(experiment, {})


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
      "pair_construction is .*makes Controller;",
    ),
    (
      {"kl_controller": Configured(pair_construction.best)},
      "kl_controller is .*best.*makes PairConstruction;",
    ),
    # 4 prompts x 2 completions: beta (1 - 0.2 * 8 / 1.6) = 0.
    (
      {"kl_controller": Configured(kl_control.adaptive_kl, beta=0.02, horizon=1.6)},
      "beta from 0.02 to 0 .*of 8 completions.*raise horizon above max_error x 8",
    ),
    (
      {
        "kl_controller": Configured(kl_control.adaptive_kl, beta=0.02, horizon=1.7),
        "dynamic_sampling": 3,
      },
      "beta from 0.02 to -.*of 24 completions",
    ),
  ],
)
def test_what_cannot_learn_is_refused_by_name(changes, match):
  with pytest.raises(ValueError, match=match):
    _check(experiments.replace(RUN, **changes))


# What the papers put beside samples: ReMax its baseline, XPO the reference's answer.
@pytest.mark.parametrize(
  ("name", "first"),
  [("remax", "greedy"), ("exploratory_dpo", "reference"), ("rloo", "sample")],
)
def test_column_0_is_the_one_that_the_objective_is_made_for(name, first):
  for given in ("sample", "greedy", "reference"):
    sampling = dataclasses.replace(RUN.data.sampling, column0_source=given)
    run = experiments.replace(RUN, objective=ObjectiveConfig(name), sampling=sampling)
    if given == first:
      _check(run)
      continue
    match = f"column0_source is '{given}', and {name} is made for '{first}'"
    with pytest.raises(ValueError, match=match):
      _check(run)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"minibatches": 2}, "Rollouts.minibatches is 2: .* to 1"),
    ({"ppo_epochs": 3}, "Rollouts.ppo_epochs is 3: .* to 1"),
    (
      {"sampling": dataclasses.replace(RUN.data.sampling, staleness=1)},
      "Sampling.staleness is 1: .* to 0",
    ),
  ],
)
def test_objective_without_a_ratio_refuses_samples_of_another_policy(changes, match):
  _check(experiments.replace(RUN, **changes))  # PPO has a ratio
  for name in ("rloo", "reinforce"):
    run = experiments.replace(RUN, objective=ObjectiveConfig(name), **changes)
    with pytest.raises(ValueError, match=f"{match}, .*allow_off_policy=True"):
      _check(run)
    _check(experiments.replace(run, allow_off_policy=True))


RATES = Feedback(
  Configured(rules.cyclic_preference, patterns=("a", "b", "c")), kind="win_rates"
)
APART = dataclasses.replace(RATES, include_self=False)
DUEL = experiments.replace(RUN, objective=ObjectiveConfig("ipo_md"), feedback=APART)
MET = dataclasses.replace(RUN.data.sampling, opponent=Opponent())
THREE = dataclasses.replace(RUN.data.sampling, completions=3)


@pytest.mark.parametrize("name", ["sppo", "nash_md", "dno", "ipo_md"])
def test_scores_are_no_win_rates(name):
  with pytest.raises(ValueError, match=f"{name} learns from win rates.*'scores'"):
    _check(experiments.replace(RUN, objective=ObjectiveConfig(name)))


@pytest.mark.parametrize("feedback", [RATES, APART])
def test_nobody_is_beaten_alone(feedback):
  nash = experiments.replace(
    RUN, objective=ObjectiveConfig("nash_md"), feedback=feedback
  )
  _check(nash)
  with pytest.raises(ValueError, match=r"completions is 1 .*beat nobody"):
    _check(experiments.replace(nash, sampling=ONE))
  met = dataclasses.replace(ONE, opponent=Opponent())
  _check(experiments.replace(nash, sampling=met))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"feedback": RATES}, "include_self is True"),
    ({"sampling": MET}, r"opponent Opponent\("),
    ({"sampling": THREE}, "completions 3"),
  ],
)
def test_a_duel_is_between_two_and_leaves_oneself_out(changes, match):
  _check(DUEL)
  with pytest.raises(ValueError, match=f"ipo_md learns from the prob.*{match}"):
    _check(experiments.replace(DUEL, **changes))


def test_a_controller_that_leaves_beta_positive_passes():
  # beta (1 - 0.2 * 8 / 1.7) = 0.06 beta
  rule = Configured(kl_control.adaptive_kl, beta=0.02, horizon=1.7)
  _check(experiments.replace(RUN, kl_controller=rule))


LEARNED = dataclasses.replace(MODEL, rotary=None, positions=24)
TOO_MANY = Sampling(completions=2, max_completion_tokens=4, top_k=MODEL.vocab + 1)
LONG = Sampling(completions=2, max_completion_tokens=24)


def _after(start) -> Stage:
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
  tokenizer = synthetic_reviews.train_bpe(["ab"], config.vocab)
  hf_checkpoint.save(where, config, params, tokenizer=tokenizer)
  return str(where)


@pytest.mark.parametrize(
  ("model", "sampling", "match"),
  [
    (MODEL, TOO_MANY, "top_k is 321; allowed: 1 to 320"),
    (
      LEARNED,
      LONG,
      "max_completion_tokens is 24: after .* 1 tokens that is 25, .* 24 positions",
    ),
  ],
)
def test_a_stage_is_not_trained_for_a_start_without_room(
  model, sampling, match, tmp_path
):
  run = experiments.replace(RUN, start=_after(Scratch(model)), sampling=sampling)
  with pytest.raises(ValueError, match=match):
    loop.train(run, tmp_path / "run", say=lambda text: None)
  assert not (tmp_path / "run").exists()


def test_the_longest_prompt_of_a_known_tokenizer_must_fit(directory, tmp_path):
  datasets = {"rows": [Prompt("0", "x"), Prompt("1", "x" * 18)]}  # BOS, 18 letters
  for max_completion_tokens, fits in ((5, True), (6, False)):
    run = experiments.replace(
      RUN,
      prompts=Prompts("rows"),
      start=_after(Pretrained(directory)),
      sampling=Sampling(completions=2, max_completion_tokens=max_completion_tokens),
    )
    if fits:
      loop.check(run, datasets)
      continue
    match = "a prompt of 19 tokens that is 25, .* 24 positions"
    with pytest.raises(ValueError, match=match):
      loop.check(run, datasets)


def test_offload_needs_pinned_memory_of_the_host(monkeypatch, tmp_path):
  model = dataclasses.replace(MODEL, remat="offload")
  run = experiments.replace(RUN, start=_after(Scratch(model)))
  _check(run)  # the CPU has it
  device = SimpleNamespace(
    device_kind="TPU v1", addressable_memories=lambda: [SimpleNamespace(kind="device")]
  )
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  match = r"Config.remat .*'pinned_host'; TPU v1 has device; allowed here: none, full, "
  with pytest.raises(ValueError, match=match):
    loop.train(run, tmp_path / "run", say=lambda text: None)
  assert not (tmp_path / "run").exists()


def test_a_rating_is_brought_by_its_pair_construction_alone():
  cringe = experiments.replace(RUN, objective=ObjectiveConfig("cringe"))
  rated = experiments.replace(
    cringe, pair_construction=Configured(pair_construction.rated_by_threshold)
  )
  with pytest.raises(ValueError, match=r"layout RATED; rollouts become"):
    _check(cringe)
  # One completion is enough for a rating, and not for a best and a worst.
  for made, completions in ((rated, 2), (rated, 1)):
    sampling = dataclasses.replace(ONE, completions=completions)
    _check(experiments.replace(made, sampling=sampling))
  extremes = experiments.replace(
    cringe,
    pair_construction=Configured(pair_construction.rated_best_worst),
    sampling=ONE,
  )
  with pytest.raises(ValueError, match=r"cringe learns nothing.*2 or more"):
    _check(extremes)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_one_completion_is_enough_without_a_group_baseline(name):
  _check(experiments.replace(RUN, objective=ObjectiveConfig(name), sampling=ONE))


def test_empty_prompt_set_is_refused_and_leaves_no_directory(tmp_path):
  empty = experiments.replace(
    RUN, prompts=Prompts("none"), start=Scratch(MODEL, tokenizer=None)
  )
  with pytest.raises(ValueError, match="holds no prompt"):
    loop.train(empty, tmp_path / "run", datasets={"none": []}, say=lambda text: None)
  assert not (tmp_path / "run").exists()


AVERAGED = Sampling(completions=2, opponent=Opponent(0.0, of="average"))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({}, r'of is "average"; set Optimizer\.ema'),
    (
      {"optimizer": Optimizer(ema=0.9), "adapter": Adapter()},
      "mean of an adapter's factors",
    ),
  ],
)
def test_an_averaged_opponent_needs_an_average_of_whole_weights(changes, match):
  nash = experiments.replace(
    RUN, objective=ObjectiveConfig("nash_md"), feedback=RATES, sampling=AVERAGED
  )
  _check(experiments.replace(nash, optimizer=Optimizer(ema=0.9)))
  with pytest.raises(ValueError, match=match):
    _check(experiments.replace(nash, **changes))


@pytest.mark.parametrize(
  ("mesh", "match"),
  [
    (MeshShape(data=3), "places for 8 devices"),
    (MeshShape(data=8), "rows=4 of a step do not split evenly"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, match):
  with pytest.raises(ValueError, match=match):
    _check(experiments.replace(RUN, mesh=mesh))


WIDE = MeshShape(data=4, tensor=2)


@pytest.mark.parametrize(
  ("mesh", "to_sample", "match"),
  [
    (WIDE, MeshShape(tensor=3), r"Sampling\.mesh: .* places for 8 devices"),
    (MeshShape(data=1), WIDE, "the run would have one device of 8; leave Sampling"),
    (WIDE, MeshShape(data=1), "the sampler would have one device of 8; leave Samp"),
    (WIDE, MeshShape(tensor=8), r"Sampling\.mesh: parameter .*cannot be split .*=8"),
    (MeshShape(tensor=8), None, r"Experiment\.mesh: parameter .*cannot be split .*=8"),
  ],
)
def test_a_mesh_that_cannot_sample_or_hold_the_model_is_refused(mesh, to_sample, match):
  sampling = dataclasses.replace(RUN.data.sampling, mesh=to_sample)
  with pytest.raises(ValueError, match=match):
    rollouts_program.check(experiments.replace(RUN, mesh=mesh, sampling=sampling), {})


def test_mesh_takes_the_devices_that_the_other_axes_leave():
  assert validate.make_mesh(MeshShape(data=1)) is None
  sizes = dict(validate.make_mesh(MeshShape(fsdp=2, tensor=2)).shape)
  assert sizes == {"data": 2, "fsdp": 2, "tensor": 2}


def test_wandb_that_is_not_installed_is_refused(monkeypatch):
  monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"pip install 'xpo_jax\[wandb\]'"):
    _check(experiments.replace(RUN, loop=Loop(wandb="project")))
