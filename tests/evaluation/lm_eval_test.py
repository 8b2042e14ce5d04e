"""The adapter to lm-eval, on requests of lm-eval's form, against whole forward passes.

lm-eval itself is an extra: where it is installed, a task of its own is run too.
"""

import dataclasses
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_policy
from xpo_jax import cli
from xpo_jax.evaluation import lm_eval
from xpo_jax.models import hf_checkpoint, transformer

PAIRS = [
  ("this film", " was good"),
  ("this film ", "was bad"),  # the space belongs to the continuation
  ("the plot", " of this film was very bad and the film was long"),
  ("", "this film was good"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tiny_policy.write(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def checkpoint(directory):
  return hf_checkpoint.load(directory)


@pytest.fixture(scope="module")
def adapted(checkpoint):
  return lm_eval.HarnessModel(checkpoint, "model", batch=3)


def _requests(*args):
  return [types.SimpleNamespace(args=one) for one in args]


def _logp_TV(checkpoint, ids):
  """Log-probs after each token, by one dense forward pass."""
  model = transformer.model(checkpoint.config)
  params = jax.device_put(checkpoint.params["lm"])
  rows = transformer.Rows.plain(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
  hidden_LD = model.hidden(params, rows)[0]
  return np.asarray(jax.nn.log_softmax(hidden_LD @ model.head(params).T))


def _sum(checkpoint, prompt, tokens):
  ids = [*prompt, *tokens]
  logp_TV = _logp_TV(checkpoint, ids[:-1])
  at = range(len(prompt) - 1, len(ids) - 1)
  greedy = all(logp_TV[t].argmax() == ids[t + 1] for t in at)
  return sum(logp_TV[t, ids[t + 1]] for t in at), greedy


def test_log_likelihoods_are_those_of_whole_forward_passes(adapted, checkpoint):
  tokenizer = checkpoint.tokenizer
  bos = tokenizer.bos_token_id
  prefix = tokenizer.eos_token_id if bos is None else bos
  found = adapted.loglikelihood(_requests(*PAIRS))
  for (context, continuation), (logp, greedy) in zip(PAIRS, found, strict=True):
    if context:
      whole = tokenizer.encode(context + continuation)
      prompt = tokenizer.encode(context.rstrip())
    else:
      whole = [prefix, *tokenizer.encode(continuation, add_special_tokens=False)]
      prompt = [prefix]
    expected, is_greedy = _sum(checkpoint, prompt, whole[len(prompt) :])
    np.testing.assert_allclose(logp, expected, atol=1e-4)
    assert greedy is is_greedy


def test_only_the_likeliest_continuation_is_greedy(adapted, checkpoint):
  prompt = checkpoint.tokenizer.encode("this film")
  ids = list(prompt)
  for _ in range(3):
    ids.append(int(_logp_TV(checkpoint, ids)[-1].argmax()))
  likeliest = ids[len(prompt) :]
  other = [*likeliest[:-1], (likeliest[-1] + 1) % 300]
  greedy = adapted._score([(prompt, likeliest), (prompt, other)])[:, 1]
  assert greedy.tolist() == [1, 0]


@pytest.mark.parametrize("positions", [4, 7, 2048])
def test_rolling_windows_predict_each_token_once_with_a_full_context(
  checkpoint, positions
):
  adapted = lm_eval.HarnessModel(checkpoint, "model", batch=4)
  adapted._positions = positions
  text = "this film was good and the plot was not bad at all"
  found = adapted.loglikelihood_rolling(_requests((text,), (text[:9],)))
  for logp, one in zip(found, (text, text[:9]), strict=True):
    ids = [adapted._prefix, *checkpoint.tokenizer.encode(one, add_special_tokens=False)]
    expected = 0.0
    for start in range(1, len(ids), positions):
      end = min(start + positions, len(ids))
      first = max(0, end - 1 - positions)
      expected += _sum(checkpoint, ids[first:start], ids[start:end])[0]
    np.testing.assert_allclose(logp, expected, atol=1e-4)
  assert adapted.truncated == 0


def test_window_of_learned_positions_needs_none_for_its_last_token(checkpoint):
  config = dataclasses.replace(checkpoint.config, rotary=None, positions=8)
  params = {"lm": transformer.model(config).init(jax.random.key(1))}
  learned = checkpoint._replace(config=config, params=params)
  adapted = lm_eval.HarnessModel(learned, "model", batch=4)
  ids = list(range(5, 14))  # eight tokens of input, the ninth is predicted only
  ((found, _),) = adapted._score([(ids[:3], ids[3:])])
  expected, _ = _sum(learned, ids[:3], ids[3:])
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_long_context_is_cut_at_its_start_and_counted(checkpoint):
  adapted = lm_eval.HarnessModel(checkpoint, "model", batch=4)
  adapted._positions = 8
  context, continuation = "this film was good and the plot was bad" * 2, " this film"
  whole = checkpoint.tokenizer.encode(context + continuation)
  tokens = whole[len(checkpoint.tokenizer.encode(context)) :]
  (found, _), _ = adapted.loglikelihood(
    _requests((context, continuation), ("this", " film"))
  )
  expected, _ = _sum(checkpoint, whole[-9 : -len(tokens)], tokens)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert adapted.truncated == 1
  with pytest.raises(ValueError, match=r"continuation has \d+ tokens; .* 8 positions"):
    adapted.loglikelihood(_requests(("this", context)))
  with pytest.raises(ValueError, match="no room"):
    adapted.generate_until(_requests(("this", {"max_gen_toks": 8})))


def test_completions_end_before_the_first_stop_string(adapted):
  contexts = ["this film", "the plot of this", "a"]
  whole = adapted.generate_until(
    _requests(*[(one, {"until": [], "max_gen_toks": 12}) for one in contexts])
  )
  assert all(len(text) > 4 for text in whole)
  stops = [text[2:4] for text in whole]
  requests = _requests(
    *[
      (one, {"until": ["never", text[3:], stop], "max_gen_toks": 12})
      for one, text, stop in zip(contexts, whole, stops, strict=True)
    ]
  )
  found = adapted.generate_until(requests)
  assert found == [
    text[: text.index(stop)] for text, stop in zip(whole, stops, strict=True)
  ]


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ({}, (256, True, 1.0, None)),
    ({"do_sample": False, "temperature": 0.7}, (256, True, 1.0, None)),
    ({"do_sample": True, "top_k": 0}, (256, False, 1.0, None)),
    ({"temperature": 0.7, "top_k": 5, "max_new_tokens": 9}, (9, False, 0.7, 5)),
  ],
)
def test_generation_arguments_are_translated(arguments, expected):
  config, stops = lm_eval.generation_config(arguments | {"until": "\n"})
  found = config.max_completion_tokens, config.greedy, config.temperature, config.top_k
  assert found == expected and stops == ["\n"]


def test_arguments_that_the_sampler_lacks_are_refused():
  with pytest.raises(ValueError, match=r"num_beams=4.*generation_kwargs"):
    lm_eval.generation_config({"num_beams": 4})
  with pytest.raises(ValueError, match="one limit"):
    lm_eval.generation_config({"max_tokens": 4, "max_gen_toks": 5})


def test_messages_are_rendered_by_the_chat_template(adapted):
  messages = [{"role": "user", "content": "hello"}]
  assert adapted.apply_chat_template(messages).endswith("<user>hello<assistant>")
  messages.append({"role": "assistant", "content": "It is"})
  text = adapted.apply_chat_template(messages, add_generation_prompt=False)
  assert text.endswith("<assistant>It is")  # goes on, without EOS
  assert adapted.chat_template(False) is None
  assert adapted.chat_template(True) == tiny_policy.TEMPLATE


def test_missing_extra_is_named(directory, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  assert cli.main(["evaluate", str(directory), "--tasks", "arc_easy"]) == 2
  assert "pip install 'xpo_jax[lm-eval]'" in capsys.readouterr().err


def test_task_of_lm_eval_gives_the_same_numbers(directory, checkpoint, tmp_path):
  pytest.importorskip("lm_eval")
  rows = [
    {
      "text": "this film",
      "options": [" was good", " was a very bad one"],
      "gold": n % 2,
    }
    for n in range(3)
  ]
  data = tmp_path / "rows.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "tiny.yaml").write_text(
    "task: tiny_choice\ndataset_path: json\n"
    f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
    "test_split: test\noutput_type: multiple_choice\n"
    'doc_to_text: "{{text}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: gold\n'
  )
  found = lm_eval.evaluate(directory, ["tiny_choice"], include_path=tmp_path)
  tokenizer, context = checkpoint.tokenizer, rows[0]["text"]
  prompt = tokenizer.encode(context)
  logps = [
    _sum(checkpoint, prompt, tokenizer.encode(context + option)[len(prompt) :])[0]
    for option in rows[0]["options"]
  ]
  right = [int(np.argmax(logps) == row["gold"]) for row in rows]
  assert found["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
  with pytest.raises(ValueError, match=r"no task 'tiny_choise'; did you mean"):
    lm_eval.evaluate(directory, ["tiny_choise"], include_path=tmp_path)
