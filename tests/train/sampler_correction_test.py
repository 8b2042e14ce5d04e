"""A run that corrects for its sampler: what it records, weighs and reports."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train.tiny_runs import PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import SamplerCorrection
from xpo_jax.train import (
  minibatches,
  rollouts,
  rollouts_program,
  run_directory,
  validate,
)
from xpo_jax.train.loading import Inputs

# Half of the samples are hotter than the policy, all of rounded weights.
RUN = experiments.replace(
  PLAIN,
  objective=ObjectiveConfig("grpo", beta=None),
  sampling=dataclasses.replace(
    PLAIN.data.sampling, exploration_temperature=1.7, weights_dtype="bfloat16"
  ),
  sampler_correction=SamplerCorrection(cap=math.inf, bounds=(0.5, 4.0)),
)


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("run")
  parts, first = rollouts_program.assemble(RUN, run_dir, Inputs(), {}, quiet)
  # So small a model starts near to uniform, at any temperature and dtype.
  rng = np.random.default_rng(0)
  moved = jax.tree.map(
    lambda x: x + 0.7 * rng.standard_normal(x.shape).astype("f"), first.train.params
  )
  return parts, first.replace(train=first.train.replace(params=moved))


def _copied(tree):
  return jax.tree.map(lambda x: x.copy(), tree)


@pytest.fixture(scope="module")
def iterated(assembled):
  """The state after an iteration, its metrics, and the values it recorded."""
  parts, now = assembled
  seen, construct = [], minibatches.construct

  def watched(pairs, drawn, values, *rewards):
    seen.append(values)
    return construct(pairs, drawn, values, *rewards)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(minibatches, "construct", watched)
    after, line = rollouts_program.iterate(parts, _copied(now), 0)
  return after, line, seen[0]


def _tokens(by_completion) -> np.ndarray:
  return np.concatenate([x for group in by_completion for x in group])


def test_old_log_probs_are_the_trainers_and_the_samplers_its_own(assembled, iterated):
  parts, _ = assembled
  _, line, values = iterated
  drawn = rollouts.read(parts.run_dir / run_directory.ROLLOUTS / "000001.jsonl")
  np.testing.assert_array_equal(
    _tokens(values["sampler_logp_BKT"]), _tokens(drawn.sampler_logp)
  )
  # What the sampler's rounded weights say of its tokens is near, and not the same.
  gap = np.abs(_tokens(values["old_logp_BKT"]) - _tokens(drawn.logp))
  assert 1e-4 < gap.mean() < 0.1
  assert line["ratio"] == pytest.approx(
    1, abs=1e-5
  )  # exactly on-policy, by the trainer


def test_metrics_are_of_the_recorded_log_probs(iterated):
  _, line, values = iterated
  gap = _tokens(values["old_logp_BKT"]) - _tokens(values["sampler_logp_BKT"])
  ratio = np.exp(gap.astype(np.float64))
  assert line["sampler_kl"] == pytest.approx(-gap.mean(), rel=1e-4)
  assert line["sampler_ratio"] == pytest.approx(ratio.mean(), rel=1e-4)
  left_out = ((ratio < 0.5) | (ratio > 4)).mean()
  assert line["sampler_left_out"] == pytest.approx(left_out) and left_out > 0
  assert line["sampler_truncated"] == 0


def test_iteration_that_is_read_is_the_one_that_was_sampled(assembled, iterated):
  parts, now = assembled
  after, line, _ = iterated
  again, same = rollouts_program.iterate(parts, _copied(now), 0)  # from its file
  pairs = zip(*map(jax.tree.leaves, (after.train, again.train)), strict=True)
  keys = jax.dtypes.prng_key
  assert all(
    np.array_equal(a, b) for a, b in pairs if not jax.dtypes.issubdtype(a.dtype, keys)
  )
  times = {name for name in line if name.startswith("time/")}
  assert all(same[name] == line[name] for name in line.keys() - times)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (
      {"objective": ObjectiveConfig("dpo")},
      "sampler_correction: dpo is no policy grad",
    ),
    (
      {
        "objective": ObjectiveConfig("exploratory_dpo"),
        "sampling": dataclasses.replace(
          PLAIN.data.sampling, column0_source="reference"
        ),
      },
      "column 0 is no sample of the policy",
    ),
  ],
)
def test_what_no_weight_corrects_is_refused(changes, match):
  validate.check_rollouts(RUN, {})
  with pytest.raises(ValueError, match=match):
    validate.check_rollouts(experiments.replace(RUN, **changes), {})
