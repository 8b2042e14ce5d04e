"""What a reward model sees online is what it saw in training, id by id."""

import pickle

import numpy as np
import pytest

from tests.data.render_test import CHATML, STRICT, THINKING, WORDS
from xpo_jax.data import records, synthetic_reviews, tokenise
from xpo_jax.data.records import Conversation, Turn
from xpo_jax.data.render import Template
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import tokenised_texts

TALK = (
  Turn("user", "why? "),
  Turn("assistant", "because the sky is blue.", other={"reasoning_content": "blue"}),
  Turn("user", "what is two plus two?"),
)


@pytest.fixture(scope="module")
def tokenizer():
  made = synthetic_reviews.train_bpe(WORDS, 400)
  made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
  return made


@pytest.mark.parametrize("template", [CHATML, STRICT, THINKING])
@pytest.mark.parametrize("limits", [Limits(), Limits(24, 3, "truncate")])
def test_conversation_has_the_tokens_of_training(tokenizer, template, limits):
  tokenizer.chat_template = template
  arguments = {"tools": [{"name": "f"}]} if template is THINKING else {}
  given = Template(arguments={"enable_thinking": False})
  replies = ["four", " four, I think.", "two plus<|im_end|>"]
  trained = tokenise.tokenise(
    [
      records.Demonstration(
        "", TALK, (Turn("assistant", text, loss=True),), template_arguments=arguments
      )
      for text in replies
    ],
    tokenizer,
    given,
    limits=limits,
  )
  scored = tokenised_texts.to_examples(
    [Conversation(TALK, arguments)] * 3,
    replies,
    tokenizer,
    template=given,
    limits=limits,
  )
  for ours, theirs in zip(scored, trained, strict=True):
    np.testing.assert_array_equal(ours.prompt, theirs.prompt)
    np.testing.assert_array_equal(ours.completions[0], theirs.completions[0])


def test_completion_of_more_than_a_content_has_the_tokens_of_training(tokenizer):
  tokenizer.chat_template = THINKING
  reply = (Turn("assistant", "four", loss=True, other={"reasoning_content": "2 + 2"}),)
  record = records.Demonstration("", TALK, reply)
  (trained,) = tokenise.tokenise([record], tokenizer)
  (scored,) = tokenised_texts.to_examples(
    [records.prompt_string(record)],
    [records.completion_string(reply)],
    tokenizer,
    template=Template(),
    limits=Limits(),
  )
  np.testing.assert_array_equal(scored.completions[0], trained.completions[0])
  assert "2 + 2" in tokenizer.decode(scored.completions[0])


def test_separators_with_special_tokens_are_those_of_training(tokenizer):
  template = Template("<|im_start|>", "<|im_end|>")
  record = records.Demonstration("", "why?", " because<|im_end|>")
  (trained,) = tokenise.tokenise([record], tokenizer, template)
  (scored,) = tokenised_texts.to_examples(
    ["why?"], [record.completion], tokenizer, template=template, limits=Limits()
  )
  np.testing.assert_array_equal(scored.prompt, trained.prompt)
  np.testing.assert_array_equal(scored.completions[0], trained.completions[0])
  control = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
  assert [int(x) for x in scored.prompt if x in control] == control


def test_conversation_is_a_string_that_keeps_its_messages():
  talk = Conversation(TALK, {"tools": []})
  assert talk.startswith("user: why? \n\nassistant: because the sky is blue.\n{")
  assert talk.endswith('two plus two?\n\n{"tools": []}')
  assert talk != Conversation(TALK) != Conversation(TALK[:1])
  again = pickle.loads(pickle.dumps(talk))
  assert (again, again.turns) == (talk, talk.turns)
  pair = records.with_messages(records.Pair("a", talk, "four", "two"))
  assert pair.prompt == TALK and pair.template_arguments == {"tools": []}
  assert pair.chosen == (Turn("assistant", "four", loss=True),)
  ranked = records.with_messages(records.Ranked("a", talk, ("x", "y"), (1, 0)))
  assert [text[0].content for text in ranked.completions] == ["x", "y"]
  plain = records.Pair("a", "why?", "four", "two")
  assert records.with_messages(plain) is plain
