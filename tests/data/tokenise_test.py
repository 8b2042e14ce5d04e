import dataclasses

import numpy as np
import pytest

from xpo_jax.data import records, synthetic_reviews, tokenise
from xpo_jax.data.records import Turn
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.types import Layout

CHAT = (
  "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = "user: hello there. assistant: the sky is blue, not black. why? because it is."


@pytest.fixture(scope="module")
def tokenizer():
  return synthetic_reviews.train_bpe([WORDS] * 3, 400)


@pytest.fixture(scope="module")
def chat_tokenizer():
  tokenizer = synthetic_reviews.train_bpe([WORDS] * 3, 400)
  tokenizer.chat_template = CHAT
  return tokenizer


@pytest.fixture(scope="module")
def bare_tokenizer():
  """A tokenizer with an EOS but no BOS, as Qwen's."""
  tokenizer = synthetic_reviews.train_bpe([WORDS] * 3, 400)
  tokenizer.bos_token = None
  return tokenizer


PAIR = records.Pair("one", "the sky is", " blue", " black.")


def one(record, tokenizer, template=Template(), limits=Limits()):
  (example,) = tokenise.tokenise([record], tokenizer, template, limits=limits)
  return example


def bad_record(record, tokenizer, template=Template(), limits=Limits()):
  tokenised = tokenise.tokenise_valid([record], tokenizer, template, limits=limits)
  assert not tokenised.examples and tokenised.dropped == (record,)
  (bad,) = tokenised.bad
  assert bad.uid == record.uid
  return bad


def test_prompt_has_one_bos_and_every_completion_ends_with_eos(tokenizer):
  example = one(PAIR, tokenizer)
  assert example.prompt[0] == tokenizer.bos_token_id
  assert tokenizer.decode(example.prompt[1:]) == "the sky is"
  texts = [tokenizer.decode(y) for y in example.completions]
  assert texts == [" blue</s>", " black.</s>"]
  everything = np.concatenate([example.prompt, *example.completions])
  assert (everything == tokenizer.bos_token_id).sum() == 1
  assert (everything == tokenizer.eos_token_id).sum() == 2
  assert {y.dtype for y in (example.prompt, *example.completions)} == {
    np.dtype("int32")
  }
  assert example.masks is None
  assert example.tokens == len(everything)


def test_eos_in_the_text_is_not_added_again(tokenizer):
  parse = Template(control_tokens="parse")
  example = one(records.Demonstration("a", "the sky", " is</s>"), tokenizer, parse)
  assert tokenizer.decode(example.completions[0]) == " is</s>"


def test_tokenizer_without_bos_rejects_an_empty_prompt(bare_tokenizer):
  example = one(PAIR, bare_tokenizer)
  assert bare_tokenizer.decode(example.prompt) == "the sky is"
  empty = dataclasses.replace(PAIR, prompt="")
  assert bad_record(empty, bare_tokenizer).problem == "empty prompt"


def test_empty_prompt_is_the_bos_alone(tokenizer):
  example = one(dataclasses.replace(PAIR, prompt=""), tokenizer)
  assert example.prompt.tolist() == [tokenizer.bos_token_id]


def test_separators_are_part_of_the_prompt(tokenizer):
  template = Template(before="user: ", between=" assistant:")
  example = one(PAIR, tokenizer, template)
  assert tokenizer.decode(example.prompt[1:]) == "user: the sky is assistant:"
  assert tokenizer.decode(example.completions[0]) == " blue</s>"


@pytest.mark.parametrize(
  ("prompt", "completion", "shown"),
  [
    ("the sk", "y is", "'the sk' + 'y is'"),  # a word cut in two
    ("the sky ", "is", "'the sky ' + 'is'"),  # the space is part of the next token
  ],
)
def test_merge_across_the_boundary_is_a_bad_record(
  tokenizer, prompt, completion, shown
):
  bad = bad_record(records.Demonstration("row 7", prompt, completion), tokenizer)
  assert bad.problem == "boundary"
  assert shown in bad.detail
  assert "template.between" in bad.detail


def test_conversation_is_rendered_by_the_chat_template(chat_tokenizer):
  question = (Turn("user", "why?"),)
  reply = (Turn("assistant", "because it is.", loss=True),)
  example = one(records.Demonstration("a", question, reply), chat_tokenizer)
  prompt, answer = chat_tokenizer.batch_decode([example.prompt, example.completions[0]])
  assert prompt == "<s>user: why?\nassistant:"
  assert answer == " because it is.</s>"


@pytest.mark.parametrize("every", [False, True])
def test_loss_covers_marked_turns_with_their_eos(chat_tokenizer, every):
  start = (Turn("user", "hello"),)
  turns = (
    Turn("assistant", "the sky is blue.", loss=every),
    Turn("user", "why?"),
    Turn("assistant", "because it is.", loss=True),
  )
  example = one(records.Demonstration("a", start, turns), chat_tokenizer)
  (ids,), (mask,) = example.completions, example.masks
  text = chat_tokenizer.decode(ids)
  assert text == (" the sky is blue.</s>\nuser: why?\nassistant: because it is.</s>")
  trained = chat_tokenizer.decode(ids[mask])
  first = " the sky is blue.</s>" if every else ""
  assert trained == first + " because it is.</s>"


def test_template_that_rewrites_the_prompt_is_a_bad_record(chat_tokenizer):
  # Starts with the number of messages, so that a completion changes the prompt.
  chat_tokenizer.chat_template = "{{ messages | length }}" + CHAT
  question, reply = (Turn("user", "why?"),), (Turn("assistant", "it is.", loss=True),)
  bad = bad_record(records.Demonstration("a", question, reply), chat_tokenizer)
  chat_tokenizer.chat_template = CHAT
  assert bad.problem == "template rewrites the prompt"


def test_long_completion_is_truncated_and_counted(tokenizer):
  tokenised = tokenise.tokenise_valid([PAIR], tokenizer, limits=Limits(completion=2))
  (example,) = tokenised.examples
  assert [tokenizer.decode(y) for y in example.completions] == [" blue</s>", " black."]
  assert tokenised.counts == tokenise.Counts(truncated_completions=1)


def test_completions_equal_within_the_limit_state_no_preference(tokenizer):
  pair = dataclasses.replace(PAIR, chosen=" blue, not.", rejected=" blue, black.")
  assert one(pair, tokenizer, limits=Limits(completion=4)).completions
  bad = bad_record(pair, tokenizer, limits=Limits(completion=2))
  assert bad.problem == "identical chosen and rejected"
  assert "the same 2 tokens within limits.completion; raise it" in bad.detail


def test_equal_completions_with_different_rewards_are_a_bad_record(tokenizer):
  ranked = records.Ranked("a", "the sky is", (" blue", " blue"), (1.0, 1.0))
  assert one(ranked, tokenizer).completions
  bad = bad_record(dataclasses.replace(ranked, rewards=(1.0, 0.5)), tokenizer)
  assert bad.problem == "equal completions, different rewards"
  assert "with rewards 1 and 0.5" in bad.detail


def test_long_prompt_is_rejected_or_keeps_its_bos_and_end(tokenizer):
  bad = bad_record(PAIR, tokenizer, limits=Limits(prompt=3))
  assert bad.problem == "over-long prompt"
  assert bad.detail.startswith("4 tokens, the limit is 3")
  truncate = Limits(prompt=3, long_prompt="truncate")
  tokenised = tokenise.tokenise_valid([PAIR], tokenizer, limits=truncate)
  assert tokenizer.decode(tokenised.examples[0].prompt) == "<s> sky is"
  assert tokenised.counts == tokenise.Counts(truncated_prompts=1)
  (prompt,) = tokenise.tokenise_prompts([PAIR], tokenizer, limits=truncate)
  np.testing.assert_array_equal(prompt, tokenised.examples[0].prompt)


def test_truncated_prompt_without_bos_keeps_its_end(bare_tokenizer):
  truncate = Limits(prompt=2, long_prompt="truncate")
  assert (
    bare_tokenizer.decode(one(PAIR, bare_tokenizer, limits=truncate).prompt)
    == " sky is"
  )


def test_truncation_that_leaves_no_loss_is_a_bad_record(chat_tokenizer):
  start = (Turn("user", "hello"),)
  turns = (Turn("assistant", "why?"), Turn("user", "why?"))
  record = records.Demonstration(
    "a", start, (*turns, Turn("assistant", "it is.", loss=True))
  )
  bad = bad_record(record, chat_tokenizer, limits=Limits(completion=2))
  assert bad.problem == "empty completion"


@pytest.mark.parametrize(
  ("record", "layout", "fields"),
  [
    (records.Demonstration("a", "the", " sky"), Layout.DEMO, {}),
    (PAIR, Layout.PAIR, {}),
    (
      records.Pair("a", "the", " sky", " blue", probability=0.75),
      Layout.PAIR,
      {"reward": [0.75, 0.25]},
    ),
    (
      records.Pair("a", "the", " sky", " blue", margin=2.0),
      Layout.PAIR,
      {"margin": [2, 0]},
    ),
    (
      records.Rated("a", "the", " sky", desirable=True),
      Layout.RATED,
      {"desirable": [1]},
    ),
    (
      records.Rated("a", "the", " sky", desirable=False, reward=0.5),
      Layout.RATED,
      {"desirable": [0], "reward": [0.5]},
    ),
    (
      records.Ranked("a", "the", (" sky", " blue"), (1.0, -1.0)),
      Layout.RANKED,
      {"reward": [1, -1]},
    ),
  ],
)
def test_record_determines_layout_and_fields(tokenizer, record, layout, fields):
  example = one(record, tokenizer)
  assert example.layout is layout
  assert {name: x.tolist() for name, x in example.fields.items()} == fields
  assert all(x.dtype == np.float32 for x in example.fields.values())


def test_valid_records_keep_their_order(tokenizer):
  data = [
    dataclasses.replace(PAIR, uid="a"),
    dataclasses.replace(PAIR, uid="b", rejected=" "),
    dataclasses.replace(PAIR, uid="c", prompt="the sk", chosen="y"),
    records.Prompt("d", "the"),
    dataclasses.replace(PAIR, uid="e", rejected=PAIR.chosen),
    dataclasses.replace(PAIR, uid="f"),
  ]
  tokenised = tokenise.tokenise_valid(data, tokenizer)
  assert [example.uid for example in tokenised.examples] == ["a", "f"]
  assert sorted(bad.uid for bad in tokenised.bad) == ["b", "c", "d", "e"]
  with pytest.raises(records.BadRecords, match="4 bad records") as caught:
    tokenise.tokenise(data, tokenizer)
  assert caught.value.bad == tokenised.bad


def test_tokenizer_without_template_or_eos_raises(tokenizer):
  question, reply = (Turn("user", "why?"),), (Turn("assistant", "it is.", loss=True),)
  with pytest.raises(ValueError, match="no chat template"):
    tokenise.tokenise_valid([records.Demonstration("a", question, reply)], tokenizer)
  no_eos = synthetic_reviews.train_bpe([WORDS], 300)
  no_eos.eos_token = None
  with pytest.raises(ValueError, match="no EOS"):
    tokenise.tokenise_valid([PAIR], no_eos)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"prompt": 1}, r"limits\.prompt: 1"),
    ({"completion": 0}, r"limits\.completion: 0"),
    ({"long_prompt": "drop"}, "long_prompt: 'drop'"),
  ],
)
def test_invalid_limit_raises(arguments, message):
  with pytest.raises(ValueError, match=message):
    Limits(**arguments)


def test_step_label_is_on_the_token_after_the_step(tokenizer):
  row = records.Stepped("a", "the", (" sky is", "blue", "why"), (1.0, 0.0, -1.0))
  example = one(row, tokenizer)
  (completion,), (label_T,) = example.completions, example.token_fields["reward"]
  assert example.layout is Layout.RATED
  before = {
    tokenizer.decode(completion[:t]): label for t, label in enumerate(label_T) if label
  }
  assert before == {" sky is": 1, " sky is\nblue\nwhy": -1}
  assert completion[-1] == tokenizer.eos_token_id and label_T[-1] == -1
  short = one(row, tokenizer, limits=Limits(completion=len(completion) - 1))
  assert short.token_fields["reward"][0].tolist() == label_T[:-1].tolist()
