"""Tests saved reward models: rewards, tokens, normalisation, ensembles, refusals."""

import copy
import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from xpo_jax.data import pack, records, synthetic_reviews, tokenise
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Example, Limits
from xpo_jax.feedback import critic, protocol, reward_model, tokenised_texts
from xpo_jax.feedback.protocol import Scores
from xpo_jax.models import heads, hf_checkpoint, score, transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import kl_control, masked, token_stats
from xpo_jax.ops.kl_control import Affine
from xpo_jax.sharding import mesh as meshes
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
TEMPLATE, LIMITS = Template("Q: ", "\nA:"), Limits(12, 6, "truncate")
TEXTS = synthetic_reviews.generate(6, seed=0)
PROMPTS, COMPLETIONS = (list(column) for column in zip(*TEXTS, strict=True))


@pytest.fixture(scope="module")
def tokenizer():
  return synthetic_reviews.train_bpe([f"Q: {p}\nA:{y}" for p, y in TEXTS], CONFIG.vocab)


def _params(seed):
  lm, head = jax.random.split(jax.random.key(seed))
  model = transformer.model(CONFIG)
  lm = jax.tree.map(lambda x: 2 * x, model.init(lm))
  return {"lm": lm, "value": heads.init_reward_head(head, CONFIG.width)}


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
  """Saves two reward models of different seeds."""
  directories = []
  for seed in (0, 1):
    directory = tmp_path_factory.mktemp("reward")
    hf_checkpoint.save(directory, CONFIG, _params(seed), tokenizer=tokenizer)
    reward_model.write_description(directory, TEMPLATE, LIMITS)
    directories.append(str(directory))
  return directories


@pytest.fixture(scope="module")
def scorer(saved):
  return reward_model.scorer(saved[0], batch=4)


def test_reward_equals_the_value_in_training(scorer, tokenizer):
  data = [records.Demonstration(str(n), *text) for n, text in enumerate(TEXTS)]
  examples = tokenise.tokenise(data, tokenizer, TEMPLATE, limits=LIMITS)
  batch = pack.eval_batches(examples, pack.PackSizes(3, row_length=64))[0]
  microbatch = jax.tree.map(lambda x: x[0], batch)
  stats = (token_stats.REWARD_HEAD,)
  record = score.score(
    {"policy": transformer.model(CONFIG)}, {"policy": _params(0)}, stats, microbatch
  )
  by_row = np.asarray(masked.last(record.reward_head_BKT, record.mask_BKT))[:, 0]
  valid = np.asarray(record.weight_B) > 0
  expected = np.zeros(len(TEXTS), np.float32)
  expected[np.asarray(record.row_B)[valid]] = by_row[valid]
  scores = scorer(PROMPTS, COMPLETIONS)
  assert scores.reason is None and scores.value_N.dtype == np.float32
  np.testing.assert_allclose(scores.value_N, expected, atol=2e-6)
  assert np.ptp(expected) > 0.1  # not constant


def test_last_token_and_eos_change_reward_and_statistic(saved, tokenizer):
  eos = tokenizer.eos_token_id
  texts = [[7, 8, eos], [7, 8, 9], [7, 8, 10], [7, 8], [7], [eos]]
  completions = tuple(np.array(text, np.int32) for text in texts)
  prompt = np.array([5, 6, 11], np.int32)
  listed = Example("x", prompt, completions, Layout.RANKED)
  batch = pack.eval_batches([listed], pack.PackSizes(1, row_length=32))[0]
  record = score.score(
    {"policy": transformer.model(CONFIG)},
    {"policy": _params(0)},
    (token_stats.REWARD_HEAD,),
    jax.tree.map(lambda x: x[0], batch),
  )
  packed_K = masked.last(record.reward_head_BKT, record.mask_BKT)[0]
  alone = [Example("x", prompt, (y,), Layout.DEMO) for y in completions]
  value_N = reward_model.head_values(reward_model.load(saved[0]), alone, 4)
  np.testing.assert_allclose(value_N, packed_K, atol=2e-6)
  gaps = np.abs(value_N[:, None] - value_N)[np.triu_indices(len(texts), 1)]
  assert gaps.min() > 1e-3


def test_tokens_equal_those_of_training(tokenizer):
  for limits in (LIMITS, Limits(), Limits(completion=1)):
    data = [records.Demonstration(str(n), *text) for n, text in enumerate(TEXTS)]
    expected = tokenise.tokenise(data, tokenizer, TEMPLATE, limits=limits)
    examples = tokenised_texts.to_examples(
      PROMPTS, COMPLETIONS, tokenizer, template=TEMPLATE, limits=limits
    )
    for a, b in zip(examples, expected, strict=True):
      assert a.prompt.tolist() == b.prompt.tolist()
      assert a.completions[0].tolist() == b.completions[0].tolist()


def test_completion_that_was_cut_gets_no_eos(scorer, tokenizer):
  cut = [records.Cut(text) for text in COMPLETIONS]
  assert cut == COMPLETIONS  # strings as any other
  both = tokenised_texts.to_examples(
    PROMPTS * 2, COMPLETIONS + cut, tokenizer, template=TEMPLATE, limits=Limits()
  )
  for ended, unended in zip(both[: len(cut)], both[len(cut) :], strict=True):
    *tokens, eos = ended.completions[0].tolist()
    assert eos == tokenizer.eos_token_id
    assert unended.completions[0].tolist() == tokens
  short = [text[:2] for text in COMPLETIONS]  # within the limit
  ended, unended = (
    scorer(PROMPTS, texts).value_N for texts in (short, list(map(records.Cut, short)))
  )
  assert (np.abs(ended - unended) > 1e-4).all()
  assert np.isfinite(scorer(["the film"], [records.Cut("")]).value_N).all()


def test_message_that_was_cut_is_not_closed_by_the_template(tokenizer):
  chat = copy.deepcopy(tokenizer)
  chat.chat_template = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }} END {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
  )
  prompt = records.Conversation((records.Turn("user", "the film"),))
  examples = tokenised_texts.to_examples(
    [prompt] * 3,
    ["it is fine", records.Cut("it is fine"), records.Cut("")],
    chat,
    template=Template(),
    limits=Limits(),
  )
  assert len({tuple(example.prompt) for example in examples}) == 1
  texts = [chat.decode(example.completions[0]) for example in examples]
  assert texts == ["it is fine END</s>", "it is fine", ""]


def test_unusual_texts_have_finite_rewards(scorer, tokenizer):
  # Empty, no leading space, an EOS in the text, whitespace.
  texts = ["", "s", " fine.</s>", " " * 3]
  rewards = scorer(["the film"] * 4, texts).value_N
  assert np.isfinite(rewards).all()
  (empty, *_) = tokenised_texts.to_examples(
    ["the"], [""], tokenizer, template=TEMPLATE, limits=LIMITS
  )
  assert empty.completions[0].tolist() == [tokenizer.eos_token_id]
  bare = Template()
  (merged,) = tokenised_texts.to_examples(
    ["the fil"], ["m"], tokenizer, template=bare, limits=Limits()
  )
  whole = [*merged.prompt, *merged.completions[0]]
  joint = tokenizer("the film", add_special_tokens=False)["input_ids"]
  assert whole == [tokenizer.bos_token_id, *joint, tokenizer.eos_token_id]


def test_reward_does_not_depend_on_the_batch(scorer, saved):
  alone = [scorer([p], [y]).value_N[0] for p, y in TEXTS]
  np.testing.assert_allclose(scorer(PROMPTS, COMPLETIONS).value_N, alone, atol=2e-6)


def test_rewards_sharded_over_eight_devices_are_equal(scorer, saved):
  mesh = meshes.make_mesh(2, 2, 2)
  split = reward_model.sharded_scorer(saved[0], data=2, fsdp=2, tensor=2, batch=4)
  expected = scorer(PROMPTS, COMPLETIONS).value_N
  np.testing.assert_allclose(split(PROMPTS, COMPLETIONS).value_N, expected, atol=2e-6)
  with pytest.raises(ValueError, match="do not split evenly"):
    reward_model.scorer(saved[0], batch=3, mesh=mesh)(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
  ("sizes", "match"),
  [
    ({"data": 3}, "has 3 places for 8 devices"),
    ({"data": 8, "batch": 12}, "rows=12 of a step do not split evenly"),
    ({"fsdp": 2, "tensor": 4}, r"reward model .*: .*heads.*2"),  # 2 heads over 4
  ],
)
def test_mesh_that_does_not_fit_raises(sizes, match, saved):
  with pytest.raises(ValueError, match=match):
    reward_model.sharded_scorer(saved[0], **sizes)


def test_normalised_model_is_saved_and_loaded(saved, tokenizer):
  model = reward_model.load(saved[0])
  raw = reward_model.to_scorer(model, batch=4)(PROMPTS, COMPLETIONS).value_N
  unit = reward_model.normalise(model, PROMPTS, COMPLETIONS)
  rewards = reward_model.to_scorer(unit, batch=4)(PROMPTS, COMPLETIONS).value_N
  np.testing.assert_allclose(rewards, (raw - raw.mean()) / raw.std(), atol=1e-4)
  again = reward_model.normalise(unit, PROMPTS, COMPLETIONS)  # from the raw head values
  np.testing.assert_allclose(again.affine, unit.affine, rtol=1e-6)
  centred = reward_model.normalise(
    model, PROMPTS, COMPLETIONS, rule=kl_control.centring
  )
  np.testing.assert_allclose(centred.affine, (1, -raw.mean()), atol=1e-6)
  directory = saved[1]
  reward_model.write_description(directory, TEMPLATE, LIMITS, affine=unit.affine)
  loaded = reward_model.load(directory)
  assert loaded.affine == unit.affine
  assert (loaded.template, loaded.limits) == (TEMPLATE, LIMITS)
  reward_model.write_description(directory, TEMPLATE, LIMITS)
  with pytest.raises(ValueError, match="at least 2"):
    reward_model.normalise(model, ["p"], ["y"])


def test_equal_rewards_normalise_to_zero(saved):
  model = reward_model.load(saved[0])
  unit = reward_model.normalise(model, ["p"] * 3, [" y"] * 3)
  rewards = reward_model.to_scorer(unit, batch=4)(["p"] * 3, [" y"] * 3).value_N
  assert np.abs(rewards).max() < 0.1


def _constant(*values):
  return lambda prompts, completions: Scores(np.array(values, np.float32))


def test_ensemble_takes_the_mean_or_the_minimum():
  members = [_constant(1, 5), _constant(3, 4), _constant(5, np.nan)]
  np.testing.assert_array_equal(
    reward_model.ensemble_mean(members)("ab", "cd").value_N[0], 3
  )
  least = reward_model.ensemble_min(members)("ab", "cd").value_N
  assert least[0] == 1 and np.isnan(least[1])  # a member abstained
  with pytest.raises(ValueError, match="at least one"):
    reward_model.ensemble_min([])


def test_implicit_reward_is_the_scaled_log_ratio(saved, tokenizer):
  scorer = reward_model.implicit_scorer(
    *saved,
    beta=0.3,
    before=TEMPLATE.before,
    between=TEMPLATE.between,
    prompt_tokens=LIMITS.prompt,
    completion_tokens=LIMITS.completion,
    batch=4,
  )
  rewards = scorer(PROMPTS, COMPLETIONS).value_N
  examples = tokenised_texts.to_examples(
    PROMPTS, COMPLETIONS, tokenizer, template=TEMPLATE, limits=LIMITS
  )
  model = transformer.model(CONFIG)
  sums = []
  for seed in (0, 1):
    lm = _params(seed)["lm"]
    for example in examples:
      ids = np.concatenate([example.prompt, *example.completions])[None]
      rows = transformer.Rows.plain(ids, np.ones_like(ids))
      logits = np.asarray(model.hidden(lm, rows)[0] @ model.head(lm).T, np.float64)
      logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      at = np.arange(len(example.prompt) - 1, ids.shape[1] - 1)
      sums.append(logp[at, ids[0, at + 1]].sum())
  policy, ref = np.split(np.array(sums), 2)
  np.testing.assert_allclose(rewards, 0.3 * (policy - ref), atol=1e-4)
  same = reward_model.implicit_scorer(saved[0], saved[0], batch=4)
  assert not same(PROMPTS, COMPLETIONS).value_N.any()
  with pytest.raises(ValueError, match="beta=0"):
    reward_model.implicit_scorer(*saved, beta=0)


def test_log_probs_of_the_implicit_reward_are_of_bounded_logits():
  model = transformer.model(dataclasses.replace(CONFIG, logit_softcap=0.5))
  lm = _params(0)["lm"]
  ids = np.array([[5, 6, 7, 8]])
  rows = tokenised_texts.TextBatch(
    tokens_RL=ids,
    mask_RL=np.ones_like(ids),
    response_RL=np.array([[False, False, True, True]]),
    length_R=np.array([4]),
  )
  plain = transformer.Rows.plain(ids, rows.mask_RL)
  logits = 0.5 * np.tanh(model.hidden(lm, plain)[0] @ model.head(lm).T / 0.5)
  logp = jax.nn.log_softmax(logits)
  expected = logp[1, 7] + logp[2, 8]
  got = reward_model._logps(model, None, {"lm": lm}, rows)
  np.testing.assert_allclose(got, [expected], atol=1e-5)


def test_reward_model_uses_its_own_tokenizer(saved, tmp_path):
  other = synthetic_reviews.train_bpe(["another text of other words"], CONFIG.vocab)
  hf_checkpoint.save(tmp_path, CONFIG, _params(0), tokenizer=other)
  reward_model.write_description(tmp_path, TEMPLATE, LIMITS)
  model = reward_model.load(tmp_path)
  reward_N = reward_model.to_scorer(model, batch=4)(PROMPTS, COMPLETIONS).value_N
  examples = tokenised_texts.to_examples(
    PROMPTS, COMPLETIONS, other, template=TEMPLATE, limits=LIMITS
  )
  np.testing.assert_array_equal(reward_N, reward_model.head_values(model, examples, 4))
  assert (
    reward_N != reward_model.scorer(saved[0], batch=4)(PROMPTS, COMPLETIONS)[0]
  ).all()


def test_implicit_reward_of_two_tokenizers_raises(saved, tmp_path):
  other = synthetic_reviews.train_bpe(["another text of other words"], CONFIG.vocab)
  hf_checkpoint.save(tmp_path / "other", CONFIG, _params(1), tokenizer=other)
  with pytest.raises(ValueError, match="different tokenizers"):
    reward_model.implicit_scorer(saved[0], str(tmp_path / "other"))


def test_directory_that_is_not_a_reward_model_raises(saved, tokenizer, tmp_path):
  with pytest.raises(ValueError, match=r"no reward\.json"):
    reward_model.scorer(str(tmp_path))
  policy = tmp_path / "policy"
  hf_checkpoint.save(policy, CONFIG, {"lm": _params(0)["lm"]}, tokenizer=tokenizer)
  reward_model.write_description(policy, TEMPLATE, LIMITS)
  with pytest.raises(ValueError, match="no scalar head"):
    reward_model.scorer(str(policy))
  reward_model.write_description(policy, TEMPLATE, LIMITS, kind=reward_model.PREFERENCE)
  with pytest.raises(ValueError, match="has a preference model"):
    reward_model.scorer(str(policy))
  with pytest.raises(ValueError, match="finite"):
    reward_model.write_description(policy, TEMPLATE, LIMITS, affine=Affine(np.nan, 0))


def test_reward_model_of_another_reading_is_refused(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / "old")
  path = tmp_path / "old" / reward_model.FILE
  description = json.loads(path.read_text())
  assert description.pop("read_at") == "last token"
  path.write_text(json.dumps(description))
  raw = functools.partial(reward_model.load_raw, template=TEMPLATE, limits=LIMITS)
  for load in (reward_model.scorer, raw, critic.check):
    with pytest.raises(ValueError, match=r"read_at is None.*'last token'.*train"):
      load(str(tmp_path / "old"))


@pytest.mark.nonfinite
def test_diverged_weights_raise(saved):
  model = reward_model.load(saved[0])
  diverged = dict(
    model.params, value={"kernel_D": np.full(8, np.nan), "bias": np.zeros(())}
  )
  with pytest.raises(ValueError, match="reward of text 0 is nan"):
    reward_model.to_scorer(model._replace(params=diverged), batch=4)(
      PROMPTS, COMPLETIONS
    )


def test_groups_are_scored_by_the_protocol(scorer):
  reward_BK = protocol.score_groups(
    scorer, PROMPTS[:2], [COMPLETIONS[:2], COMPLETIONS[2:4]]
  )
  assert reward_BK.shape == (2, 2)


def test_few_shapes_are_compiled(saved):
  model = reward_model.load(saved[0])
  scorer = reward_model.to_scorer(model, batch=4)
  scorer(PROMPTS, COMPLETIONS)
  before = reward_model._values._cache_size()
  for count in (1, 3, 5, 6):
    scorer(PROMPTS[:count], COMPLETIONS[:count])
  assert reward_model._values._cache_size() == before


def test_limits_round_trip(saved):
  assert dataclasses.asdict(reward_model.load(saved[0]).limits) == {
    "prompt": 12,
    "completion": 6,
    "long_prompt": "truncate",
  }
