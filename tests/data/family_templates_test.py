"""Conversations of each family's format, against transformers' `apply_chat_template`.

Templates here write the formats of the families, in their own words: headers, end of a
turn, BOS, a system message of its own or within the user's, trimming, reasoning that is
left out of earlier turns, results of tools.
"""

import jinja2
import numpy as np
import pytest

from xpo_jax.data import records, sources, synthetic_reviews, tokenise
from xpo_jax.data.records import Turn
from xpo_jax.data.render import Template


def _headers(start, close, end, *, bos="", roles=None, trim=False, mark=False):
  """A template of `start ROLE close CONTENT end` for each message."""
  role = "m.role" if roles is None else f"{roles}[m.role]"
  content = "m.content | trim" if trim else "m.content"
  text = f"{{{{ {content} }}}}{end}"
  if mark:  # what the model writes, end of the turn included
    text = (
      "{% if m.role == 'assistant' %}{% generation %}"
      f"{text}{{% endgeneration %}}{{% else %}}{text}{{% endif %}}"
    )
  name = "assistant" if roles is None else "model"
  return (
    f"{bos}{{% for m in messages %}}{start}{{{{ {role} }}}}{close}{text}"
    f"{{% endfor %}}{{% if add_generation_prompt %}}{start}{name}{close}{{% endif %}}"
  )


def _chatml(**more):
  return _headers("<|im_start|>", "\n", "<|im_end|>\n", **more)


_GEMMA = _headers(
  "<start_of_turn>",
  "\n",
  "<end_of_turn>\n",
  bos="{{ bos_token }}",
  roles="{'user': 'user', 'assistant': 'model', 'system': 'user'}",
  trim=True,
)
_MISTRAL = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
  "[INST] {{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
  " {{ m.content | trim }}{{ eos_token }}{% else %}"
  "{{ raise_exception('roles: user and assistant') }}{% endif %}{% endfor %}"
)
# Reasoning stays in the turns after the last message of the user, and only there.
_THINKING = (
  "{% set ns = namespace(last=-1) %}{% for m in messages %}"
  "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
  "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
  "{% if m.role == 'assistant' %}"
  "{% if loop.index0 > ns.last and (m.reasoning_content or loop.last) %}"
  "<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}"
  "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>"
  "{{ call.function | tojson }}</tool_call>{% endfor %}"
  "{% elif m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>"
  "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n"
  "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
FAMILIES = {  # name: template, tokens, whether there is a BOS, the end of a turn
  "chatml: qwen2, smollm2, olmo 3": (_chatml(), "<|im_start|> <|im_end|>"),
  "chatml with marks: smollm3": (_chatml(mark=True), "<|im_start|> <|im_end|>"),
  "qwen3": (_THINKING, "<|im_start|> <|im_end|>"),
  "llama 3": (
    _headers(
      "<|start_header_id|>",
      "<|end_header_id|>\n\n",
      "<|eot_id|>",
      bos="{{ bos_token }}",
      trim=True,
    ),
    "<|start_header_id|> <|end_header_id|> <|eot_id|>",
  ),
  "gemma": (_GEMMA, "<start_of_turn> <end_of_turn>"),
  "mistral": (_MISTRAL, "[INST] [/INST]"),
  "phi 3": (
    _headers("<|", "|>\n", "<|end|>\n"),
    "<|user|> <|assistant|> <|system|> <|end|>",
  ),
  "granite": (
    _headers("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n"),
    "<|start_of_role|> <|end_of_role|> <|end_of_text|>",
  ),
  "olmo 2": (
    _headers("<|", "|>\n", "{{ eos_token if m.role == 'assistant' }}\n", bos="</s>"),
    "",
  ),
}
WORDS = ["why? because the sky is blue. be brief. what then? four, I think. user model"]
TALK = (
  Turn("user", "why?"),
  Turn("assistant", "because", loss=True),
  Turn("user", "what then?"),
  Turn("assistant", "four, I think.", loss=True),
)


@pytest.fixture(scope="module")
def made():
  tokenizer = synthetic_reviews.train_bpe(WORDS, 330)
  names = " ".join(tokens for _, tokens in FAMILIES.values()).split()
  tokenizer.add_special_tokens(
    {"additional_special_tokens": list(dict.fromkeys(names))}
  )
  return tokenizer


@pytest.fixture(params=FAMILIES)
def tokenizer(request, made):
  made.chat_template, tokens = FAMILIES[request.param]
  made.eos_token = "</s>"
  if tokens:  # what ends a turn ends a completion
    made.eos_token = tokens.split()[-1] if "INST" not in tokens else "</s>"
  return made


def theirs(tokenizer, turns, **arguments):
  """What transformers encodes, without the template's last line break."""
  messages = [{"role": x.role, "content": x.content, **x.other} for x in turns]
  prompt = tokenizer.apply_chat_template(
    messages[:-1], add_generation_prompt=True, return_dict=False, **arguments
  )
  whole = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
  ids = tokenizer(whole.rstrip(), add_special_tokens=False)["input_ids"]
  return prompt, ids


def record(turns, **more):
  return records.Demonstration("row", turns[:-1], turns[-1:], **more)


@pytest.mark.parametrize("turns", [TALK[:2], TALK], ids=["one turn", "two turns"])
def test_tokens_are_transformers(tokenizer, turns):
  prompt, whole = theirs(tokenizer, turns)
  (ids,) = tokenise.tokenise_prompts([record(turns)], tokenizer)
  assert ids.tolist() == prompt
  (example,) = tokenise.tokenise([record(turns)], tokenizer)
  assert example.prompt.tolist() == prompt
  ended = (
    whole if whole[-1] == tokenizer.eos_token_id else [*whole, tokenizer.eos_token_id]
  )
  assert [*example.prompt, *example.completions[0]] == ended
  assert ended.count(tokenizer.eos_token_id) >= 1


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_mask_is_that_of_the_marks(made, loss_on):
  """By transformers' own mask of assistants' tokens."""
  made.chat_template, made.eos_token = _chatml(mark=True), "<|im_end|>"
  messages = [{"role": x.role, "content": x.content} for x in TALK]
  loaded = sources.from_dicts(
    [{"messages": messages}], "rows", sources.Reading(loss_on=loss_on)
  )
  (example,) = tokenise.tokenise(loaded.records, made)
  encoded = made.apply_chat_template(
    messages, return_dict=True, return_assistant_tokens_mask=True
  )
  ids = [*example.prompt, *example.completions[0]]
  assert ids == encoded["input_ids"][: len(ids)]
  expected = np.array(encoded["assistant_masks"][: len(ids)], bool)
  if loss_on == "last":
    expected[: len(example.prompt)] = False
  mask = np.ones(len(example.completions[0]), bool)
  if example.masks is not None:
    mask = example.masks[0]
  np.testing.assert_array_equal(mask, expected[len(example.prompt) :])
  assert mask.any() and (loss_on == "last" or not mask.all())


PARTS = (  # calls of tools are marked, what is said and the end of a turn are not
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
  "{% for call in m.tool_calls or [] %}{% generation %}{{ call }}{% endgeneration %}"
  "{% endfor %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained(tokenizer, completion, mask):
  return tokenizer.decode(completion[mask])


def test_blocks_choose_within_the_turns_with_loss(made):
  made.chat_template, made.eos_token = PARTS, "<|im_end|>"
  calls = [
    Turn("assistant", "because", other={"tool_calls": ["four"]}),
    Turn("tool", "then"),
    Turn("assistant", "I think", loss=True, other={"tool_calls": ["blue", "sky"]}),
  ]
  one = records.Demonstration("row", TALK[:1], tuple(calls))
  (example,) = tokenise.tokenise([one], made)
  # The first call is of a turn without loss.
  assert trained(made, example.completions[0], example.masks[0]) == "bluesky"
  pair = records.Pair("row", TALK[:1], tuple(calls), (calls[0], *calls[1:2], calls[2]))
  other = (*calls[:2], Turn("assistant", "", loss=True, other={"tool_calls": ["is"]}))
  pair = records.Pair("row", TALK[:1], tuple(calls), other)
  (example,) = tokenise.tokenise([pair], made)
  chosen, rejected = zip(example.completions, example.masks, strict=True)
  assert trained(made, *chosen) == "bluesky" and trained(made, *rejected) == "is"
  silent = records.Demonstration("row", TALK[:1], TALK[1:2])
  (bad,) = tokenise.tokenise_valid([silent], made).bad
  assert "have no loss" in bad.detail and "{% generation %}" in bad.detail


def test_blocks_stand_beside_control_tokens_that_the_data_spell(made):
  made.chat_template, made.eos_token = _chatml(mark=True), "<|im_end|>"
  turns = (
    Turn("user", "why?<|im_end|>"),
    Turn("assistant", "because<|im_start|>", loss=True),
    Turn("user", "what then?<|im_start|>"),
    Turn("assistant", "four", loss=True),
  )
  one = records.Demonstration("row", turns[:1], turns[1:])
  (example,) = tokenise.tokenise([one], made)
  text = trained(made, example.completions[0], example.masks[0])
  assert text == "because<|im_start|><|im_end|>\nfour<|im_end|>"


REASONED = Turn(
  "assistant", "four", loss=True, other={"reasoning_content": "the sky is blue"}
)


def test_reasoning_of_the_trained_turn_is_trained(made):
  made.chat_template, made.eos_token = _THINKING, "<|im_end|>"
  turns = (*TALK[:1], REASONED)
  (example,) = tokenise.tokenise([record(turns)], made)
  _, whole = theirs(made, turns)
  assert [*example.prompt, *example.completions[0]] == whole
  text = made.decode(example.completions[0])
  assert text == "<think>\nthe sky is blue\n</think>\n\nfour<|im_end|>"
  assert example.masks is None
  # Without thinking, the prompt has the empty block, and the reply begins after it.
  quiet = Template(arguments={"enable_thinking": False})
  (example,) = tokenise.tokenise([record(TALK[:2])], made, quiet)
  assert made.decode(example.prompt).endswith("assistant\n<think>\n\n</think>\n\n")
  assert made.decode(example.completions[0]) == "because<|im_end|>"


def test_reasoning_that_a_template_drops_from_earlier_turns_is_refused_or_not_trained(
  made,
):
  made.chat_template, made.eos_token = _THINKING, "<|im_end|>"
  turns = (*TALK[:1], REASONED, *TALK[2:])
  (example,) = tokenise.tokenise([record(turns)], made)
  assert "sky" not in made.decode(example.prompt)
  every = records.Demonstration("row", turns[:1], turns[1:])
  (bad,) = tokenise.tokenise_valid([every], made).bad
  assert bad.problem == "template rewrites the prompt"


_TOOLS = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
  "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}"
  "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_TOOLS_MARKED = _TOOLS.replace(
  "{{ m.content }}", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
).replace(
  "<|im_end|>\n",
  "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n",
)


@pytest.mark.parametrize("template", [_TOOLS, _TOOLS_MARKED], ids=["ends", "marks"])
def test_turns_of_tools_are_never_trained(made, template):
  made.chat_template, made.eos_token = template, "<|im_end|>"
  call = {"function": {"name": "sky", "arguments": {}}}
  messages = [
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "", "tool_calls": [call]},
    {"role": "tool", "content": "blue"},
    {"role": "assistant", "content": "because"},
  ]
  loaded = sources.from_dicts(
    [{"messages": messages}], "rows", sources.Reading(loss_on="all")
  )
  whole = made.apply_chat_template(messages, tokenize=False).rstrip()
  (example,) = tokenise.tokenise(loaded.records, made)
  assert made.decode([*example.prompt, *example.completions[0]]) == whole
  text = trained(made, example.completions[0], example.masks[0])
  assert "tool_call>" in text and "because" in text
  assert "tool<" not in text and "blue" not in text and text.count("<|im_end|>") == 2


def test_template_of_a_file_replaces_the_tokenizers(made, tmp_path):
  made.chat_template, made.eos_token = _GEMMA, "<|im_end|>"
  file = tmp_path / "chatml.jinja"
  file.write_text(_chatml(), encoding="utf-8")
  template = Template(chat_template=str(file))
  assert template == Template(chat_template=_chatml())  # the text is the value
  (example,) = tokenise.tokenise([record(TALK)], made, template)
  made.chat_template = _chatml()
  prompt, _ = theirs(made, TALK)
  assert example.prompt.tolist() == prompt
  made.chat_template = None
  assert tokenise.tokenise_prompts([record(TALK)], made, template)[0].tolist() == prompt
  with pytest.raises(ValueError, match=r"no chat template; name a file.*chat-template"):
    tokenise.tokenise_prompts([record(TALK)], made)


def test_what_is_no_template_is_refused(made, tmp_path):
  with pytest.raises(ValueError, match=r"chat_template is 'none\.jinja': neither a"):
    Template(chat_template="none.jinja")
  (tmp_path / "plain.jinja").write_text("plain")
  with pytest.raises(ValueError, match=r"plain\.jinja has no '{': it is no template"):
    Template(chat_template=str(tmp_path / "plain.jinja"))
  broken = Template(chat_template="{% for m in messages %}\n{% if %}")
  with pytest.raises(ValueError, match="cannot be parsed: line 2") as caught:
    tokenise.tokenise_prompts([record(TALK)], made, broken)
  assert isinstance(caught.value.__cause__, jinja2.TemplateSyntaxError)
