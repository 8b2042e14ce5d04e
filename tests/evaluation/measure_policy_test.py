"""Estimators against enumeration and direct computation on a tiny model."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from xpo_jax.data import tokenise
from xpo_jax.evaluation import bootstrap, evaluate_run, measure_policy, sequence_logps
from xpo_jax.models import config, heads, sample, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.types import Layout

VOCAB, EOS, LONGEST = 5, 1, 2


class Letters:
  """Stands in for a tokenizer: one letter a token."""

  eos_token_id = EOS

  def __len__(self):
    return VOCAB

  def decode(self, ids, skip_special_tokens):
    assert skip_special_tokens
    return "".join("<$abc"[i] for i in ids if i > 1)


def _reward(texts):
  return np.array([text.count("a") - 0.5 * text.count("b") for text in texts])


@pytest.fixture(scope="module")
def tiny():
  model = transformer.model(
    config.Config(
      vocab=VOCAB,
      width=8,
      layers=1,
      heads=2,
      kv_heads=2,
      head_dim=4,
      mlp_width=16,
      positions=16,
      logit_softcap=4.0,
    )
  )

  def params(seed):
    tree = model.init(jax.random.key(seed))
    # Far enough from uniform for a KL that noise does not drown.
    tree["head"] = 30 * tree["head"]
    return {"lm": tree}

  return model, params(0), params(1)


WARM = 2.0  # a temperature at which the policy is another


def _setup(model, ref, prompts, *, reward=_reward, batch=64, temperature=1.0):
  config = GenerationConfig(LONGEST, 64, temperature=temperature)
  return measure_policy.EvalSetup(model, ref, prompts, Letters(), config, reward, batch)


def _drawn(tiny, **changes):
  model, policy, ref = tiny
  prompts = [np.array([0, 2, 3]), np.array([0, 4])] * 16
  setup = _setup(model, ref, prompts, batch=24, **changes)
  return measure_policy.draw(setup, policy, jax.random.key(7))


@pytest.fixture(scope="module")
def drawn(tiny):
  return _drawn(tiny)


@pytest.fixture(scope="module")
def warm(tiny):
  return _drawn(tiny, temperature=WARM)


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, params, ids, length):
  here = jnp.arange(ids.shape[1])[None]
  rows = transformer.Rows(
    tokens_RL=ids,
    segment_RL=(here < length).astype(jnp.int32),
    branch_RL=jnp.zeros_like(ids),
    position_RL=here,
  )
  hidden = model.hidden(params["lm"], rows)[0, length - 1]
  return 4 * jnp.tanh(model.head(params["lm"]) @ hidden / 4)


def _conditional(model, params, ids, temperature=1.0):
  """log p(next | ids) by one plain forward pass."""
  padded = np.zeros((1, 8), np.int32)
  padded[0, : len(ids)] = ids
  logits = np.asarray(_logits(model, params, padded, len(ids)))
  return scipy.special.log_softmax(logits / temperature)


def _enumerate(tiny, prompt, temperature):
  """Every completion of a prompt: (tokens, log policy, log ref)."""
  model, policy, ref = tiny
  first = [_conditional(model, p, prompt, temperature) for p in (policy, ref)]
  out = [((EOS,), first[0][EOS], first[1][EOS])]
  for a in (i for i in range(VOCAB) if i != EOS):
    after = (*prompt, a)
    second = [_conditional(model, p, after, temperature) for p in (policy, ref)]
    for b in range(VOCAB):
      pair = [f[a] + s[b] for f, s in zip(first, second, strict=True)]
      out.append(((a, b), *pair))
  return out


def _exact(tiny, temperature=1.0):
  """Sequence KL and mean reward of each of the two prompts, by enumeration."""
  out = []
  for prompt in ((0, 2, 3), (0, 4)):
    rows = _enumerate(tiny, prompt, temperature)
    p = np.exp([r[1] for r in rows])
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    ratio = np.array([r[1] - r[2] for r in rows])
    text = [Letters().decode([*prompt, *r[0]], True) for r in rows]
    ended = np.array([r[0][-1] == EOS for r in rows])
    length = np.array([len(r[0]) for r in rows])
    names = ("kl", "reward", "no_eos", "length")
    values = (p @ ratio, p @ _reward(text), p @ ~ended, p @ length)
    out.append(dict(zip(names, map(float, values), strict=True)))
  return {name: (out[0][name] + out[1][name]) / 2 for name in out[0]}


@pytest.fixture(scope="module")
def exact(tiny):
  return _exact(tiny)


MEASURES = [
  ("kl", "kl"),
  ("kl_plain", "kl"),
  ("reward", "reward"),
  ("no_eos", "no_eos"),
  ("length", "length"),
]


@pytest.mark.parametrize(("measure", "truth"), MEASURES)
def test_estimates_agree_with_enumeration(drawn, exact, measure, truth):
  _check_estimate(drawn, exact, measure, truth)


@pytest.mark.parametrize(("measure", "truth"), MEASURES)
def test_estimates_are_of_the_policies_at_the_temperature(tiny, warm, measure, truth):
  _check_estimate(warm, _exact(tiny, WARM), measure, truth)


def test_a_temperature_makes_another_policy(tiny, exact):
  assert _exact(tiny, WARM)["kl"] < 0.7 * exact["kl"]


def _check_estimate(drawn, exact, measure, truth):
  got = measure_policy.measure(drawn)[measure]
  # Standard error over all samples, prompts being only two.
  column = {
    "kl": drawn.kl_PK,
    "kl_plain": drawn.log_ratio_PK,
    "reward": drawn.reward_PK,
    "no_eos": ~drawn.ended_PK,
    "length": drawn.length_PK,
  }[measure]
  se = column.std() / math.sqrt(column.size)
  assert abs(got.mean - exact[truth]) < 4 * se + 1e-6
  if measure in ("kl", "kl_plain"):
    assert exact["kl"] > 20 * se  # the test could tell 0 from the truth


def test_kl_by_position_is_less_noisy_than_the_plain_one(drawn):
  assert drawn.kl_PK.var() < 0.7 * drawn.log_ratio_PK.var()
  assert (drawn.kl_PK >= 0).all()


def test_reference_against_itself_has_no_kl(tiny):
  model, policy, _ = tiny
  setup = _setup(model, policy, [np.array([0, 2, 3])] * 24)
  draws = measure_policy.draw(setup, policy, jax.random.key(1))
  np.testing.assert_array_equal(draws.kl_PK, 0)
  np.testing.assert_array_equal(draws.log_ratio_PK, 0)


def test_last_batch_holds_no_filler(drawn):
  assert len(drawn.texts) == len(drawn.prompts) == 32
  assert drawn.prompts[-2:] == ("ab", "c")
  assert drawn.kl_PK.shape == (32, 64)


def test_reward_is_of_prompt_and_completion(drawn):
  whole = [
    p + text for p, row in zip(drawn.prompts, drawn.texts, strict=True) for text in row
  ]
  np.testing.assert_array_equal(drawn.reward_PK.ravel(), _reward(whole))


def test_win_rate_equals_the_mean_over_every_pair():
  rng = np.random.default_rng(0)
  ours, theirs = rng.integers(0, 3, (4, 3)), rng.integers(0, 3, (4, 5))
  want = [
    np.mean([(a > b) + (a == b) / 2 for a, b in itertools.product(x, y)])
    for x, y in zip(ours, theirs, strict=True)
  ]
  np.testing.assert_allclose(measure_policy.win_rate(ours, theirs), want)
  np.testing.assert_allclose(
    measure_policy.win_rate(ours, theirs[:, 0]),
    measure_policy.win_rate(ours, theirs[:, :1]),
  )


def test_win_rate_of_equals_is_one_half():
  same = np.array([[1.0, 2.0], [3.0, 3.0]])
  np.testing.assert_allclose(measure_policy.win_rate(same, same), 0.5)


def test_distinct_counts_different_ngrams():
  rows = [(1, 2, 1, 2), (1, 2), (7,)]
  assert measure_policy.distinct(rows, 1) == 3 / 7
  assert measure_policy.distinct(rows, 2) == 2 / 4
  assert measure_policy.distinct([(), (1,)], 2) == 0


def test_accuracy_counts_a_tie_as_half():
  got = measure_policy.accuracy(np.array([[1.0, 0], [0, 1], [2, 2], [3, 1]]))
  assert got.mean == 2.5 / 4


def test_accuracy_resamples_the_pairs_of_a_prompt_together():
  """Of 8 pairs on 2 prompts one prompt's are right: the error is that of 2 values."""
  score = np.array([[1.0, 0]] * 4 + [[0, 1.0]] * 4)
  got = measure_policy.accuracy(score, np.repeat([5, 9], 4))
  assert (got.mean, got.units) == (0.5, 2)
  # s^2 = ((1/2)^2 + (1/2)^2) / (2 - 1) of two prompts' means, over 2.
  assert got.se == pytest.approx(math.sqrt(0.5 / 2))


def test_score_pairs_equals_one_plain_pass_a_completion(tiny):
  model, policy, ref = tiny
  policy = policy | {"value": heads.init_reward_head(jax.random.key(3), 8)}
  examples = [
    tokenise.Example(
      "0",
      np.array([0, 2]),
      (np.array([3, 4, EOS]), np.array([2, EOS])),
      Layout.PAIR,
      masks=(np.array([False, True, True]), np.array([True, True])),
    ),
    tokenise.Example("1", np.array([0, 2, 3, 4]), (np.array([4]), np.array([3])), None),
  ]
  got = sequence_logps.score_pairs(model, policy, ref, examples, batch=1)
  for b, example in enumerate(examples):
    for k, completion in enumerate(example.completions):
      mask = example.masks[k] if example.masks else np.ones(len(completion), bool)
      logp = ref_logp = kl = 0.0
      for t, token in enumerate(completion):
        seen = [*example.prompt, *completion[:t]]
        p, q = (_conditional(model, tree, seen) for tree in (policy, ref))
        logp += mask[t] * p[token]
        ref_logp += mask[t] * q[token]
        kl += mask[t] * (np.exp(p) * (p - q)).sum()
      np.testing.assert_allclose(got["logp_BK"][b, k], logp, rtol=1e-4)
      np.testing.assert_allclose(got["ref_logp_BK"][b, k], ref_logp, rtol=1e-4)
      np.testing.assert_allclose(got["kl_BK"][b, k], kl, rtol=1e-4, atol=1e-5)
      ids = np.concatenate([example.prompt, completion])[None]
      rows = transformer.Rows.plain(ids, np.ones_like(ids))
      last_D = model.hidden(policy["lm"], rows)[0, -1]
      reward = heads.value(policy["value"], last_D)
      np.testing.assert_allclose(got["reward_head_BK"][b, k], reward, rtol=1e-4)


def test_report_compares_prompt_by_prompt_and_round_trips(tiny, drawn, tmp_path):
  model, _, ref = tiny
  prompts = [np.array([0, 2, 3]), np.array([0, 4])] * 16
  report = measure_policy.policy_report(
    _setup(model, ref, prompts, batch=24),
    ref,
    jax.random.key(7),
    reference=drawn,
    chosen=["a"] * 32,
  )
  gap_P = (report.policy.reward_PK - drawn.reward_PK).mean(1)
  want = bootstrap.bootstrap_mean(gap_P)
  assert report.differences["reward"] == want
  against = report.measures["win_rate_vs_reference"].mean
  backwards = measure_policy.win_rate(drawn.reward_PK, report.policy.reward_PK).mean()
  np.testing.assert_allclose(against + backwards, 1)
  evaluate_run.write(tmp_path, report, {"step": 3})
  read = json.loads((tmp_path / "evaluation.json").read_text())
  assert read["policy"]["kl"]["mean"] == report.measures["kl"].mean
  assert read["policy"]["distinct_1"]["low"] is None
  lines = [json.loads(x) for x in (tmp_path / "samples.jsonl").read_text().splitlines()]
  assert len(lines) == 32 and lines[0]["chosen"] == "a"
  assert len(lines[0]["answers"]) == 128
  assert lines[0]["answers"][0]["text"] == drawn.texts[0][0]


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"prompts": []}, "at least one"),
    ({"reward": lambda texts: np.zeros(1)}, "one number per text"),
  ],
)
def test_bad_input_is_refused(tiny, change, match):
  model, policy, ref = tiny
  given = {"prompts": [np.array([0, 2, 3])] * 24, "reward": _reward} | change
  with pytest.raises(ValueError, match=match):
    measure_policy.draw(_setup(model, ref, **given), policy, jax.random.key(0))


def test_recorded_log_prob_of_the_sampler_is_the_scored_one(tiny, drawn):
  model, policy, ref = tiny
  prompt_BP, length_B = sample.pad([np.array([0, 2, 3])] * 24)
  got = sample.sample(
    model,
    policy["lm"],
    sample.PromptBatch(prompt_BP, length_B, np.arange(24)),
    config=GenerationConfig(LONGEST, completions=64, stop_ids=(EOS,)),
    key=jax.random.key(2),
  )
  stats = sequence_logps.statistics(
    model,
    {"lm": policy["lm"]},
    {"lm": ref["lm"]},
    sequence_logps.PaddedTexts(
      prompt_BP, length_B, got.tokens_BKT, got.mask_BKT, got.mask_BKT
    ),
  )
  np.testing.assert_allclose(
    (got.logp_BKT * got.mask_BKT).sum(-1), stats["logp_BK"], atol=1e-4
  )
