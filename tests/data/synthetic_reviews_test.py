import numpy as np
import pytest

from xpo_jax.data import synthetic_reviews, tokenise
from xpo_jax.data.records import Demonstration


@pytest.fixture(scope="module")
def reviews():
  return synthetic_reviews.generate(6000, seed=0)


@pytest.fixture(scope="module")
def rewards(reviews):
  return synthetic_reviews.true_reward(
    [prompt + verdict for prompt, verdict in reviews]
  )


@pytest.fixture(scope="module")
def tokenizer(reviews):
  return synthetic_reviews.train_bpe(
    [prompt + verdict for prompt, verdict in reviews], 1024
  )


def test_smaller_sample_is_a_prefix_of_a_larger_one(reviews):
  assert synthetic_reviews.generate(10, seed=0) == reviews[:10]
  assert synthetic_reviews.generate(10, seed=1) != reviews[:10]


def test_prompts_are_diverse_and_neutral(reviews, rewards):
  prompts = sorted({prompt for prompt, _ in reviews})
  assert len(prompts) >= 2000
  assert not synthetic_reviews.true_reward(prompts).any()
  by_prompt = {prompt: [] for prompt in prompts}
  for (prompt, _), reward in zip(reviews, rewards, strict=True):
    by_prompt[prompt].append(reward)
  spread = [np.std(r, ddof=1) for r in by_prompt.values() if len(r) >= 4]
  assert np.mean(spread) > 0.45


def test_rewards_are_rarely_zero_or_tied(rewards):
  assert np.mean(rewards == 0) < 0.1
  half = len(rewards) // 2
  assert np.mean(rewards[:half] == rewards[half:]) < 0.05
  assert abs(rewards.mean()) < 0.2  # far from both bounds


def test_every_word_is_one_token(reviews, tokenizer):
  words = {word.strip(".,") for _, verdict in reviews for word in verdict.split()}
  encoded = tokenizer([f" {word}" for word in sorted(words)], add_special_tokens=False)
  assert {len(ids) for ids in encoded["input_ids"]} == {1}
  assert len(words) > 100


def test_prompt_ends_on_a_token_boundary(reviews, tokenizer):
  data = [Demonstration(str(i), *review) for i, review in enumerate(reviews[:500])]
  examples = tokenise.tokenise(data, tokenizer)
  lengths = [len(example.completions[0]) for example in examples]
  assert 6 < np.mean(lengths) < 10
  assert max(lengths) <= 16


def test_merges_of_a_long_word_are_learned_from_its_pieces():
  """Of a word as one the cost is quadratic: 3.4 CPU seconds for 100,000 characters, 88
  for 400,000; in pieces 0.05 and 0.24."""
  rng = np.random.default_rng(0)
  word = "".join(rng.choice(list("abcdefgh"), 20_000))
  whole = synthetic_reviews.train_bpe([word], 300)
  pieces = [word[start : start + 1000] for start in range(0, len(word), 1000)]
  assert whole.get_vocab() == synthetic_reviews.train_bpe(pieces, 300).get_vocab()
  assert whole.decode(whole(word, add_special_tokens=False).input_ids) == word


def test_tokenizer_round_trips_any_text(tokenizer):
  text = "Žluťoučký kůň \n\t 🐎"
  assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
  special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
  assert special == [0, 1, 2]


def test_reward_depends_on_the_whole_text():
  good, bad, neutral = synthetic_reviews.true_reward(
    ["the plot is superb.", "the plot is awful.", "the plot is long."]
  )
  assert bad < neutral == 0 < good


def test_labels_follow_bradley_terry():
  n, gap, tau = 20_000, 0.3, 0.25
  a, b = np.full(n, gap), np.zeros(n)
  chosen = synthetic_reviews.label_pairs(a, b, tau, rng=np.random.default_rng(0))
  p = 1 / (1 + np.exp(-gap / tau))
  assert abs(chosen.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
  assert synthetic_reviews.expected_accuracy(a, b, tau) == pytest.approx(p)
  assert synthetic_reviews.expected_accuracy(b, a, tau) == pytest.approx(p)


def test_expected_accuracy_limits_are_one_half_and_one():
  a, b = np.array([0.1, 0.2, 0.5]), np.array([0.4, 0.2, 0.1])  # one tie, left out
  assert synthetic_reviews.expected_accuracy(a, b, 1e-6) == pytest.approx(1)
  assert synthetic_reviews.expected_accuracy(a, b, 1e6) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: synthetic_reviews.train_bpe([], 1024), "texts: "),
    (lambda: synthetic_reviews.train_bpe(["a"], 259), "vocab_size: 259"),
    (
      lambda: synthetic_reviews.expected_accuracy([1.0], [1.0], 1),
      "every pair is tied",
    ),
    (lambda: synthetic_reviews.expected_accuracy([1.0], [2.0], 0), "temperature: 0"),
    (
      lambda: synthetic_reviews.label_pairs(
        np.ones(1), np.ones(1), -1, rng=np.random.default_rng(0)
      ),
      "temperature: -1",
    ),
  ],
)
def test_invalid_argument_raises_with_its_name(call, message):
  with pytest.raises(ValueError, match=message):
    call()
