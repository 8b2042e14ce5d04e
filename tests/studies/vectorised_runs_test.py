"""A sweep is the trainer's step, run by run; compiled once, a device each."""

import jax
import numpy as np
import pytest

from tests import compiling
from xpo_jax.config import optim
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import pack, tokenise
from xpo_jax.models import config, transformer
from xpo_jax.ops.tpu import chip
from xpo_jax.studies import vectorised_runs
from xpo_jax.train import state, step
from xpo_jax.types import Layout

OPTIMIZER = optim.Optimizer(warmup_steps=1)
SMALL = config.Config(
  vocab=32, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16
)


def _data(seed):
  rng = np.random.default_rng(seed)

  def text(size):
    return rng.integers(3, 32, size=size).astype(np.int32)

  examples = [
    tokenise.Example(str(i), text(3), (text(4), text(4)), Layout.PAIR)
    for i in range(12)
  ]
  return pack.plan(examples, pack.PackSizes(2, row_length=22), seed=seed)


@pytest.fixture(scope="module")
def swept():
  """SimPO (no reference needed) at three settings on two data sets."""
  model = transformer.model(SMALL)
  start = {"lm": model.init(jax.random.key(0))}
  data = {seed: _data(seed) for seed in (0, 1)}
  settings = [(0, 1.0, 1e-2), (0, 2.0, 1e-3), (1, 2.0, 1e-2)]
  runs = [
    vectorised_runs.VectorisedRun(
      vectorised_runs.stack(data[seed]),
      step.hparams(optim.Optimizer(learning_rate=rate), beta=beta),
      seed,
    )
    for seed, beta, rate in settings
  ]
  many = vectorised_runs.Sweep(
    ObjectiveConfig("simpo"), model, start, OPTIMIZER, jax.devices()[:2]
  )
  with compiling.heard() as names:
    outcomes = many(runs)
  assert names.count("jit(train)") == 1
  return model, start, data, settings, runs, many, outcomes


def test_sweep_equals_the_runs_one_by_one(swept):
  model, start, data, settings, runs, _, outcomes = swept
  models = {"policy": model}
  update = step.make_step(
    ObjectiveConfig("simpo").build, models, OPTIMIZER, len(data[0])
  )
  for (seed, _, _), run, outcome in zip(settings, runs, outcomes, strict=True):
    chain = optim.transform(OPTIMIZER)
    carry = state.create(start, chain, (), jax.random.key(seed))
    losses = []
    for i in range(len(data[seed])):
      carry, metrics = update(carry, {}, data[seed][i], run.hparams)
      losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(outcome.curve["loss"], losses, rtol=1e-5)
    for a, b in zip(
      jax.tree.leaves(outcome.params), jax.tree.leaves(carry.params), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_runs_of_a_sweep_differ_and_share_one_program(swept):
  *_, runs, many, outcomes = swept
  ends = [outcome.curve["loss"][-1] for outcome in outcomes]
  assert len(set(map(float, ends))) == 3
  with compiling.heard() as names:
    many(runs[::-1])
  assert names == []


@pytest.mark.nonfinite
def test_diverged_run_is_named(swept):
  _, _, _, _, runs, many, _ = swept
  rate = step.hparams(optim.Optimizer(learning_rate=1e30), beta=1.0)
  with pytest.raises(FloatingPointError, match=r"run 1 .* at step 1"):
    many([runs[0], runs[1]._replace(hparams=rate)])


@pytest.mark.nonfinite
def test_attempt_returns_what_diverged_beside_what_did_not(swept):
  _, _, _, _, runs, many, outcomes = swept
  rate = step.hparams(optim.Optimizer(learning_rate=1e30), beta=1.0)
  fine, wild = many.attempt([runs[0], runs[1]._replace(hparams=rate)])
  assert (fine.diverged, wild.diverged) == (None, 1)
  np.testing.assert_array_equal(fine.curve["loss"], outcomes[0].curve["loss"])


def test_start_is_the_reference_of_what_the_batches_do_not_hold(swept):
  """TDPO2 reads reference and policy together, so that nothing of it is cached."""
  model, start, data, *_ = swept
  hparams = step.hparams(optim.Optimizer(learning_rate=1e-2), beta=1.0)
  many = vectorised_runs.Sweep(
    ObjectiveConfig("tdpo2"), model, start, OPTIMIZER, jax.devices()[:1]
  )
  (outcome,) = many(
    [vectorised_runs.VectorisedRun(vectorised_runs.stack(data[0]), hparams, 0)]
  )
  models = {"policy": model, "ref": model}
  update = step.make_step(
    ObjectiveConfig("tdpo2").build, models, OPTIMIZER, len(data[0])
  )
  carry = state.create(start, optim.transform(OPTIMIZER), (), jax.random.key(0))
  losses = []
  for i in range(len(data[0])):
    carry, metrics = update(carry, {"ref": start}, data[0][i], hparams)
    losses.append(float(metrics["loss"]))
  assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[-1] != losses[0]
  np.testing.assert_allclose(outcome.curve["loss"], losses, rtol=1e-5)


def test_sweep_compiles_where_steps_have_compiler_options(swept, monkeypatch):
  """As on TPUs: JAX takes such options of outermost functions alone."""
  model, start, data, _, runs, _, outcomes = swept
  options = {"xla_cpu_enable_fast_math": False}
  monkeypatch.setattr(chip, "compiler_options", lambda kind: options)
  build = ObjectiveConfig("simpo").build
  alone = step.make_step(build, {"policy": model}, OPTIMIZER, len(data[0]))
  carry = state.create(start, optim.transform(OPTIMIZER), (), jax.random.key(0))
  with pytest.raises(ValueError, match="compiler_options"):
    jax.jit(alone).lower(carry, {}, data[0][0], runs[0].hparams)
  many = vectorised_runs.Sweep(
    ObjectiveConfig("simpo"), model, start, OPTIMIZER, jax.devices()[:1]
  )
  (outcome,) = many(runs[:1])
  np.testing.assert_allclose(
    outcome.curve["loss"], outcomes[0].curve["loss"], rtol=1e-5
  )
