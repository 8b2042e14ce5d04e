"""Generation for messages: the chat template renders them, from the shell too."""

import io

import pytest

from tests import tiny_policy
from xpo_jax import cli
from xpo_jax.data.printable import printable
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import evaluate_run
from xpo_jax.models.generation_config import GenerationConfig

CONFIG = GenerationConfig(6, greedy=True)
GREEDY = ["--greedy", "--max-completion-tokens", "6"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
  return tiny_policy.write(tmp_path_factory.mktemp("model") / "policy")


def _answer(policy, rendered):
  """The completion of a text that the template would give."""
  ((text,),) = evaluate_run.generate(policy, [rendered], CONFIG)
  return text


def test_messages_are_rendered_by_the_template(policy):
  turns = (Turn("system", "be brief"), Turn("user", "and?"))
  ((text,),) = evaluate_run.generate(policy, [turns], CONFIG)
  assert text == _answer(policy, "<system>be brief<user>and?<assistant>")


def test_special_tokens_in_messages_are_text(policy):
  spelled = (Turn("user", "a</s>b"),)
  ((text,),) = evaluate_run.generate(policy, [spelled], CONFIG)
  assert text != _answer(policy, "<user>a</s>b<assistant>")


def test_chat_answers_each_message_of_the_shell(policy, capsys):
  words = ["generate", str(policy), *GREEDY, "--system", "be brief"]
  assert cli.main([*words, "--chat", "and?", "but?"]) == 0
  expected = [
    _answer(policy, f"<system>be brief<user>{text}<assistant>")
    for text in ("and?", "but?")
  ]
  shown = printable("".join(f"{text}\n" for text in expected))
  assert capsys.readouterr().out == shown


def test_conversation_goes_on_with_the_lines_of_stdin(policy, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", io.StringIO("and?\nbut?\n\nunread\n"))
  assert cli.main(["generate", str(policy), "--chat", *GREEDY]) == 0
  first = _answer(policy, "<user>and?<assistant>")
  second = _answer(policy, f"<user>and?<assistant>{first}</s><user>but?<assistant>")
  assert capsys.readouterr().out == printable(f"{first}\n{second}\n")


def test_prompts_may_follow_flags(policy, capsys):
  assert cli.main(["generate", str(policy), *GREEDY, "a", "b"]) == 0
  expected = [f"{text}|{_answer(policy, text)}" for text in ("a", "b")]
  assert capsys.readouterr().out == printable("".join(f"{x}\n" for x in expected))


@pytest.mark.parametrize(
  ("words", "match"),
  [
    ([], "needs a PROMPT, or --chat"),
    (["x", "--chat", "y"], "needs a PROMPT, or --chat"),
    (["x", "--chatt"], "does not know --chatt"),
    (["x", "--system", "s"], "is of a conversation: add --chat"),
    (["--chat", "--completions", "2"], "a conversation goes on with one"),
  ],
)
def test_what_does_not_fit_is_said(policy, words, match, capsys):
  assert cli.main(["generate", str(policy), *words]) == 2
  assert match in capsys.readouterr().err
