"""A critic that starts as a reward model, beside a policy that trains adapters."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained, Rollouts
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data import synthetic_reviews
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import reward_model
from xpo_jax.models import heads, hf_checkpoint, lora, peft, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
from xpo_jax.ops.kl_control import Affine
from xpo_jax.train import (
  loop,
  metrics,
  minibatches,
  rollouts,
  rollouts_program,
  run_directory,
  state,
  validate,
)
from xpo_jax.train.loading import Inputs

POLICY = Config(320, 12, 1, 2, 2, 6, 16, tied=True, remat="none")
CRITIC = dataclasses.replace(POLICY, width=16, head_dim=8, layers=2)  # another size


def _save(place, config, tokenizer, seed):
  lm, head = jax.random.split(jax.random.key(seed))
  params = jax.tree.map(lambda x: 2 * x, transformer.model(config).init(lm))
  value = {"value": heads.init_reward_head(head, config.width)}
  hf_checkpoint.save(place, config, {"lm": params} | value, tokenizer=tokenizer)
  return str(place)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Directories: a policy, a reward model, and one of another tokenizer."""
  root = tmp_path_factory.mktemp("saved")
  texts = [prompt + answer for prompt, answer in synthetic_reviews.generate(30, seed=0)]
  tokenizer, other = (synthetic_reviews.train_bpe(texts, vocab) for vocab in (320, 310))
  made = {
    "policy": _save(root / "policy", POLICY, tokenizer, 0),
    "reward": _save(root / "reward", CRITIC, tokenizer, 1),
    "other": _save(root / "other", CRITIC, other, 1),
  }
  for name in ("reward", "other"):
    affine = Affine(0.5, -3.0)
    reward_model.write_description(made[name], Template(), Limits(), affine=affine)
  return made


@pytest.fixture(scope="module")
def experiment(saved):
  return Experiment(
    objective=ObjectiveConfig("ppo"),
    data=Rollouts(
      prompts=Prompts("synthetic:30"),
      feedback=Feedback(
        Configured(reward_model.scorer, directory=saved["reward"], batch=8)
      ),
      sampling=Sampling(completions=2, max_completion_tokens=6),
      iterations=2,
      prompts_per_iteration=4,
      ref_update_every=1,
      critic_init=saved["reward"],
    ),
    start=Pretrained(saved["policy"], remat="none"),
    optimizer=Optimizer(learning_rate=1e-2, ema=0.5),
    loop=Loop(log_every=1),
    mesh=MeshShape(data=1),
    evaluation=Evaluation(share=0.2, limit=4),
    adapter=Adapter(rank=2, alpha=4.0, targets="query|value|up"),
  )


def _assembled(experiment, run_dir):
  run_dir.mkdir(exist_ok=True)
  return rollouts_program.assemble(experiment, run_dir, Inputs(), {}, quiet)


@pytest.fixture(scope="module")
def trained(experiment, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("runs") / "run"
  return run_dir, loop.train(experiment, run_dir, say=quiet)


@pytest.fixture(scope="module")
def assembled(experiment, tmp_path_factory):
  return _assembled(experiment, tmp_path_factory.mktemp("assembled"))


def test_first_values_are_the_rewards_of_completions_up_to_there(
  trained, assembled, saved
):
  drawn = rollouts.read(trained[0] / run_directory.ROLLOUTS / "000001.jsonl")
  parts, first = assembled
  adapter = parts.experiment.adapter
  roles = state.roles(first.train.params, parts.frozen, adapter) | {"ref": parts.ref}
  found = minibatches.record(drawn, parts.record, roles, parts.sizes, parts.place)
  last = [value[-1] for pair in found["old_value_BKT"] for value in pair]
  # The tokens as sampled: those of an untrained policy are not their text's. A value is
  # that before its token, which the reward model has not read.
  alone = [
    dataclasses.replace(example, completions=(completion[:-1],))
    for example in drawn.examples
    for completion in example.completions
  ]
  held = reward_model.load(saved["reward"])
  rewards = held.affine.of(reward_model.head_values(held, alone, 8))
  assert np.ptp(rewards) > 0.05  # those of untrained weights differ
  np.testing.assert_allclose(last, rewards, atol=1e-5)


def test_critic_and_adapters_are_trained_and_nothing_else(trained, assembled):
  (run_dir, result), (parts, first) = trained, assembled
  base, after = parts.frozen["base"]["lm"], result.params
  same = jax.tree.map(np.array_equal, after["lm"], base)
  moved = {part for part, x in same["blocks"].items() if not all(x.values())}
  assert moved == {"query", "value", "up"} and same["embedding"]
  before = first.train.params["critic"]
  changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), after["critic"], before)
  assert changed["value"]["kernel_D"] and changed["lm"]["blocks"]["up"]["kernel"]
  adapter, params = peft.load(run_dir / run_directory.ADAPTER, POLICY, base)
  merged = lora.merged(base, params, adapter)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, after["lm"]
  )
  written = hf_checkpoint.load(run_dir / run_directory.ADAPTER).params
  jax.tree.map(np.testing.assert_array_equal, written["lm"], after["lm"])
  assert "value" not in written


def test_base_is_the_reference_without_a_copy(assembled):
  parts, _ = assembled
  pairs = map(jax.tree.leaves, (parts.ref, parts.frozen["base"]))
  assert all(a is b for a, b in zip(*pairs, strict=True))


def test_adapters_start_at_the_reference_and_it_follows_them(trained):
  lines = metrics.read(trained[0])
  # Renewed after every iteration: both rollouts are of the reference itself.
  for line in lines:
    assert line["rollout/kl"] == pytest.approx(0, abs=1e-4)
    assert line["grad_norm"] > 0
  assert abs(lines[-1]["eval/kl"]) > 1e-3  # the KL to the start has grown


def test_adapters_of_another_base_are_refused(experiment, trained, saved, tmp_path):
  run_dir, _ = trained
  moved = hf_checkpoint.load(saved["policy"]).params["lm"]
  moved = moved | {"embedding": moved["embedding"] + 1}
  with pytest.raises(ValueError, match="an adapter for another base"):
    peft.load(run_dir / run_directory.ADAPTER, POLICY, moved)
  _assembled(experiment, tmp_path / "run")
  tokenizer = hf_checkpoint.load(saved["policy"]).tokenizer
  other = Pretrained(_save(tmp_path / "other", POLICY, tokenizer, 5), remat="none")
  with pytest.raises(ValueError, match=r"changed\n  base_sha256: "):
    _assembled(experiments.replace(experiment, start=other), tmp_path / "run")


def test_reward_model_of_another_tokenizer_is_no_critic(experiment, saved, tmp_path):
  other = experiments.replace(experiment, critic_init=saved["other"])
  with pytest.raises(ValueError, match=r"critic_init .* of another tokenizer"):
    loop.train(other, tmp_path / "run", say=quiet)
  assert not (tmp_path / "run").exists()


def test_reward_model_that_the_mesh_does_not_fit_is_no_critic(
  experiment, saved, tmp_path
):
  config = dataclasses.replace(CRITIC, width=18, heads=3, kv_heads=3)  # over two
  tokenizer = hf_checkpoint.load(saved["policy"]).tokenizer
  odd = _save(tmp_path / "odd", config, tokenizer, 1)
  reward_model.write_description(odd, Template(), Limits())
  mesh = MeshShape(data=2, fsdp=2, tensor=2)
  apart = experiments.replace(experiment, critic_init=odd, mesh=mesh)
  with pytest.raises(
    ValueError, match=r"critic.*of size 3 cannot be split over tensor=2"
  ):
    _assembled(apart, tmp_path / "run")


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (
      {"objective": ObjectiveConfig("rloo")},
      "critic_init is .* but rloo reads no value",
    ),
    ({"critic_init": "nowhere"}, "nowhere is not a reward model"),
  ],
)
def test_what_can_be_no_critic_is_refused_before_anything(experiment, changes, match):
  with pytest.raises(ValueError, match=match):
    validate.check_rollouts(experiments.replace(experiment, **changes), {})
