"""Tests the preference model: data format, both orders, loading."""

import jax
import numpy as np
import pytest

from xpo_jax import objectives
from xpo_jax.data import pack, records, synthetic_reviews, tokenise
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Example, Limits
from xpo_jax.feedback import preference_model, protocol, reward_model
from xpo_jax.models import heads, hf_checkpoint, score, transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import token_stats
from xpo_jax.types import Layout

CONFIG = Config(
  vocab=300,
  width=8,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=4,
  mlp_width=16,
  positions=256,
  remat="none",
)
LIMITS = Limits(completion=5)
TEXTS = synthetic_reviews.generate(8, seed=0)
PAIRS = [
  records.Pair(str(n), *TEXTS[n], TEXTS[n + 4][1]) for n in range(4)
]  # prompt, chosen, rejected


@pytest.fixture(scope="module")
def tokenizer():
  return synthetic_reviews.train_bpe(["".join(text) for text in TEXTS], CONFIG.vocab)


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
  path = tmp_path_factory.mktemp("preference")
  model, head = transformer.model(CONFIG), heads.init_reward_head(jax.random.key(1), 8)
  lm = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(0)))
  hf_checkpoint.save(path, CONFIG, {"lm": lm, "value": head}, tokenizer=tokenizer)
  kind = reward_model.PREFERENCE
  reward_model.write_description(path, Template(), LIMITS, kind=kind)
  return str(path)


@pytest.fixture(scope="module")
def preference(directory):
  return preference_model.preference(directory, batch=4)


def test_examples_have_both_completions_in_both_orders(tokenizer):
  prompt, a, b = np.array([7, 8]), np.array([3, 4, 1]), np.array([5, 6])
  example = Example("x", prompt, (a, b), Layout.PAIR)
  assert tokenizer.eos_token_id == 1
  (formatted,) = preference_model.both_orders([example], tokenizer)
  assert formatted.layout is Layout.PAIR and formatted.prompt is prompt
  # b was truncated; it gets an EOS.
  assert [y.tolist() for y in formatted.completions] == [
    [3, 4, 1, 5, 6, 1],
    [5, 6, 1, 3, 4, 1],
  ]


def test_ranked_list_is_paired_half_a_list_apart(tokenizer):
  completions = tuple(np.array([10 + k, 1]) for k in range(5))
  reward_K = np.array([2, 5, 1, 5, 2], np.float32)  # ranks: 1 3 0 4 2
  example = Example(
    "x", np.array([7]), completions, Layout.RANKED, fields={"reward": reward_K}
  )
  pairs = preference_model.both_orders([example], tokenizer)
  # 1 against 0 and 3 against 4; the worst is not used.
  assert [(y.uid, y.completions[0].tolist()) for y in pairs] == [
    ("x/0", [11, 1, 10, 1]),
    ("x/1", [13, 1, 14, 1]),
  ]
  tied = Example(
    "y", np.array([7]), completions, Layout.RANKED, fields={"reward": np.ones(5)}
  )
  assert not preference_model.both_orders([tied], tokenizer)


def test_other_layouts_raise(tokenizer):
  example = Example("x", np.array([7]), (np.array([1]),), Layout.DEMO)
  with pytest.raises(ValueError, match="PAIR or RANKED, not DEMO"):
    preference_model.both_orders([example], tokenizer)


def test_probability_equals_that_of_the_objective(directory, preference, tokenizer):
  examples = tokenise.tokenise(PAIRS, tokenizer, limits=LIMITS)
  formatted = preference_model.both_orders(examples, tokenizer)
  batch = pack.eval_batches(formatted, pack.PackSizes(4, row_length=96))[0]
  model = reward_model.load(directory, kind=reward_model.PREFERENCE)
  record = score.score(
    {"policy": model.model},
    {"policy": model.params},
    (token_stats.REWARD_HEAD,),
    jax.tree.map(lambda x: x[0], batch),
  )
  valid = np.asarray(record.weight_B) > 0
  expected = np.zeros(4)
  expected[np.asarray(record.row_B)[valid]] = np.asarray(objectives.preference(record))[
    valid
  ]
  scores = preference(
    *zip(*((r.prompt, r.chosen, r.rejected) for r in PAIRS), strict=True)
  )
  np.testing.assert_allclose(scores.value_N, expected, atol=1e-6)
  assert np.ptp(expected) > 1e-3


def test_swapping_the_completions_gives_the_complement(preference):
  prompts, first = zip(*TEXTS[:3], strict=True)
  second = [text[1] for text in TEXTS[3:6]]
  one = preference(prompts, first, second).value_N
  other = preference(prompts, second, first).value_N
  np.testing.assert_allclose(one + other, 1, atol=1e-7)
  same = preference(prompts, first, first).value_N
  np.testing.assert_allclose(same, 0.5, atol=1e-7)


def test_win_rates_of_groups_use_the_preference(preference):
  texts = [text[1] for text in TEXTS[:3]]
  win_BKK = protocol.win_matrix(preference, [TEXTS[0][0]], [texts])
  np.testing.assert_allclose(win_BKK + win_BKK.swapaxes(1, 2), 1, atol=1e-6)
  rate_BK = protocol.win_rates(preference, [TEXTS[0][0]], [texts])
  np.testing.assert_allclose(rate_BK, win_BKK.mean(-1), atol=1e-6)


def test_scorer_of_a_preference_model_raises(directory, tmp_path):
  with pytest.raises(ValueError, match="a reward model is needed"):
    reward_model.scorer(directory)
