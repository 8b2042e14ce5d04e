"""Rollouts of a real run through PPO, RLOO and GRPO, against NumPy from the papers.

Log-probs and values are computed anew from whole unpacked rows, at the sampling
temperature; advantages and losses with loops, in float64.
"""

import dataclasses

import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train.tiny_runs import MODEL
from xpo_jax import scored
from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import rules
from xpo_jax.models import score, transformer
from xpo_jax.train import (
  minibatches,
  references,
  rollouts,
  rollouts_program,
  step,
)
from xpo_jax.train import rewards as train_rewards
from xpo_jax.train.loading import Inputs
from xpo_jax.train.rollouts_program import Parts

T, K = 0.7, 3
RUN = Experiment(
  objective=ObjectiveConfig(
    "ppo", beta=0.3, clip=0.05, lam=0.9, gamma=0.95, value_weight=0.5
  ),
  data=Rollouts(
    prompts=Prompts("synthetic:20"),
    feedback=Feedback(Configured(rules.matches, pattern="[aeiou]"), missing_eos=0.25),
    sampling=Sampling(completions=K, max_completion_tokens=6, temperature=T),
    prompts_per_iteration=8,
  ),
  start=Scratch(MODEL),
  mesh=MeshShape(data=1),
)
ONE_STEP = {
  "rloo": ObjectiveConfig("rloo", beta=0.3),
  "grpo": ObjectiveConfig("grpo", clip_high=0.1),
}


def _moved(params, seed: int):
  """Parameters apart from these, so that no ratio is 1 and no KL is 0."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
  )


@dataclasses.dataclass(frozen=True)
class Rolled:
  """One iteration's rollouts with three policies: old, ref, and the one trained."""

  parts: Parts
  drawn: object
  values: dict
  roles: dict
  reward_BK: np.ndarray
  present_BK: np.ndarray


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("oracle")
  parts, first = rollouts_program.assemble(RUN, run_dir, Inputs(), {}, quiet)
  start = first.train.params
  assert not any(x.any() for x in start["value"].values())  # nothing known: worth 0
  old, policy = _moved(start, 0), _moved(start, 2)
  ref = {"lm": _moved(start["lm"], 1)}
  drawn = rollouts.draw(
    parts.model,
    rollouts.SamplerParams(old["lm"]),
    parts.prompts,
    np.arange(RUN.data.prompts_per_iteration),
    RUN.data.sampling,
    parts.tokenizer,
    iteration=0,
    key=jax.random.key(3),
  )
  drawn = train_rewards.ask(parts.judge, drawn, RUN.data.feedback)
  reward_BK, present_BK = train_rewards.shaped(
    drawn, RUN.data.feedback, RUN.data.sampling
  )
  assert np.ptp(reward_BK, axis=1).any()  # else advantages would be 0 by themselves
  recorded = {"policy": old, "ref": ref}
  values = minibatches.record(drawn, parts.record, recorded, parts.sizes, parts.place)
  roles = {"policy": policy, "ref": ref, "old": old}
  return Rolled(parts, drawn, values, roles, reward_BK, present_BK)


@pytest.fixture(scope="module")
def plain(rolled):
  """role -> for each completion (log-probs, values) of its tokens, float64."""
  pairs = [(e.prompt, y) for e in rolled.drawn.examples for y in e.completions]
  width = max(len(x) + len(y) for x, y in pairs)
  tokens = np.zeros((len(pairs), width), np.int32)
  there = np.zeros((len(pairs), width), bool)
  for row, (x, y) in enumerate(pairs):
    tokens[row, : len(x) + len(y)] = np.concatenate([x, y])
    there[row, : len(x) + len(y)] = True
  model, rows = rolled.parts.model, transformer.Rows.plain(tokens, there)
  hidden = jax.jit(lambda lm: (model.hidden(lm, rows), model.head(lm)))
  found = {}
  for role, params in rolled.roles.items():
    states, head = (np.asarray(x, np.float64) for x in hidden(params["lm"]))
    logits = states @ head.T / T
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    value = np.zeros(states.shape[:2])
    if "value" in params:
      value = states @ np.asarray(params["value"]["kernel_D"], np.float64)
      value = value + float(params["value"]["bias"])
    found[role] = []
    for row, (x, y) in enumerate(pairs):
      at = np.arange(len(x) - 1, len(x) + len(y) - 1)
      found[role].append((logps[row, at, y], value[row, at]))
  return found


def test_sampled_log_probs_and_recorded_values_equal_rescoring(rolled, plain):
  fields = {"old_logp_BKT": ("old", 0), "ref_logp_BKT": ("ref", 0)}
  fields |= {"old_value_BKT": ("old", 1)}
  for field, (role, which) in fields.items():
    got = [one for group in rolled.values[field] for one in group]
    for a, b in zip(got, plain[role], strict=True):
      np.testing.assert_allclose(a, b[which], atol=2e-5, rtol=0, err_msg=field)


def _evaluated(use_name: str, rolled: Rolled):
  """The objective's evaluation and `prepare` on the loop's own batch."""
  use = ONE_STEP.get(use_name, RUN.objective)
  build = rollouts_program.at_temperature(use.build, T)
  objective, parts = build(), rolled.parts
  examples, arrays = minibatches.construct(
    parts.pairs, rolled.drawn, rolled.values, rolled.reward_BK, rolled.present_BK
  )
  batches, cache = minibatches.cut(
    RUN.data, RUN.seed, 0, examples, arrays, parts.pairs, parts.sizes
  )
  batch = jax.tree.map(lambda x: x[0], references.fill(cache, batches[0]))
  roles = {"policy": rolled.roles["policy"]}
  models = {"policy": parts.model}
  record = score.score(models, roles, step.stats(objective), batch)
  aux, _ = objective.prepare(record, objective.init(), None)
  found = scored.evaluate(objective, record, objective.init())
  return found, aux, np.asarray(record.row_B), record


def _groups(rolled, plain):
  """Rewards of each prompt, and of each completion logp, old, ref, value, old value."""
  out = []
  for b in range(len(rolled.drawn.examples)):
    rows = range(b * K, b * K + K)
    parts = [
      (
        plain["policy"][r][0],
        plain["old"][r][0],
        plain["ref"][r][0],
        plain["policy"][r][1],
        plain["old"][r][1],
      )
      for r in rows
    ]
    out.append((rolled.reward_BK[b].astype(np.float64), parts))
  return out


def test_rloo_is_the_papers(rolled, plain):
  found, aux, row_B, _ = _evaluated("rloo", rolled)
  losses, advantages = [], []
  for reward, parts in _groups(rolled, plain):
    total = np.array(
      [
        r - 0.3 * (old - ref).sum()
        for r, (_, old, ref, *_) in zip(reward, parts, strict=True)
      ]
    )
    a = np.array([total[i] - np.delete(total, i).mean() for i in range(K)])
    advantages.append(a)
    losses.append(np.mean([-x * p[0].sum() for x, p in zip(a, parts, strict=True)]))
  np.testing.assert_allclose(found.loss, np.mean(losses), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(aux.rows, np.array(advantages)[row_B], atol=1e-4)


def test_grpo_is_the_papers(rolled, plain):
  found, aux, row_B, _ = _evaluated("grpo", rolled)
  losses, advantages = [], []
  for reward, parts in _groups(rolled, plain):
    a = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
    advantages.append(a)
    per = []
    for x, (logp, old, ref, *_) in zip(a, parts, strict=True):
      ratio = np.exp(logp - old)
      gain = np.minimum(ratio * x, np.clip(ratio, 0.8, 1.1) * x)
      k3 = np.exp(ref - logp) - (ref - logp) - 1
      per.append((-gain + 0.04 * k3).mean())
    losses.append(np.mean(per))
  np.testing.assert_allclose(found.loss, np.mean(losses), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(aux.rows, np.array(advantages)[row_B], atol=1e-3)


def test_ppo_is_the_papers(rolled, plain):
  found, aux, row_B, record = _evaluated("ppo", rolled)
  rewards = []
  for reward, parts in _groups(rolled, plain):
    for score_, (_, old, ref, *_) in zip(reward, parts, strict=True):
      r = -0.3 * (old - ref)
      r[-1] += score_
      rewards.append(r)
  every = np.concatenate(rewards)
  scale = np.sqrt(every.var() + 1e-8)
  parts = [part for _, group in _groups(rolled, plain) for part in group]
  advantages, returns = [], []
  for r, part in zip(rewards, parts, strict=True):
    r = (r - every.mean()) / scale + every.mean()
    v = np.append(part[4], 0.0)
    a = np.zeros(len(r) + 1)
    for t in reversed(range(len(r))):
      a[t] = r[t] + 0.95 * v[t + 1] - v[t] + 0.95 * 0.9 * a[t + 1]
    advantages.append(a[:-1])
    returns.append(a[:-1] + v[:-1])
  flat = np.concatenate(advantages)
  white = [(a - flat.mean()) / np.sqrt(flat.var() + 1e-8) for a in advantages]
  policy, value = [], []
  for a, target, (logp, old, _, v, v_old) in zip(white, returns, parts, strict=True):
    ratio = np.exp(logp - old)
    policy += list(np.maximum(-a * ratio, -a * np.clip(ratio, 0.95, 1.05)))
    near = np.clip(v, v_old - 0.2, v_old + 0.2)
    value += list(np.maximum((v - target) ** 2, (near - target) ** 2) / 2)
  np.testing.assert_allclose(
    found.terms["policy"], np.mean(policy), rtol=2e-3, atol=1e-4
  )
  np.testing.assert_allclose(found.terms["value"], 0.5 * np.mean(value), rtol=1e-3)
  got, mask = np.asarray(aux.rows[0]), np.asarray(record.mask_BKT) > 0
  for slot, row in enumerate(row_B):
    for k in range(K):
      own = got[slot, k][mask[slot, k]]
      np.testing.assert_allclose(own, white[row * K + k], atol=2e-3)
