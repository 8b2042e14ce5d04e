"""Generation for messages: the chat template renders them, from the shell too."""

import io
import json
import shutil

import pytest

from tests import tiny_policy
from xpo_jax import cli
from xpo_jax.config import yaml_file
from xpo_jax.data import sources, synthetic_reviews
from xpo_jax.data.printable import printable
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import evaluate_run
from xpo_jax.models import hf_checkpoint
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
    (["--chat", "x", "--chat-file", "y"], "or --chat-file: one of them"),
    (["x", "--template-arguments", "a=b"], "a PROMPT is read by no chat template"),
    (["--chat", "x", "--output", "y"], "--output y is of --chat-file: add it"),
    (["x", "--chat", "y"], "needs a PROMPT, or --chat"),
    (["x", "--chatt"], "does not know --chatt"),
    (["x", "--system", "s"], "is of a conversation: add --chat"),
    (["--chat", "--completions", "2"], "a conversation goes on with one"),
  ],
)
def test_what_does_not_fit_is_said(policy, words, match, capsys):
  assert cli.main(["generate", str(policy), *words]) == 2
  assert match in capsys.readouterr().err


@pytest.fixture
def asked(tmp_path):
  """A file of conversations, and the text of each as the template renders it."""
  history = [
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "but."},
    {"role": "user", "content": "so?"},
  ]
  rows = [{"id": "a", "messages": history, "topic": 1}, {"prompt": "and?"}]
  path = tmp_path / "asked.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  texts = ["<user>and?<assistant>but.</s><user>so?<assistant>", "<user>and?<assistant>"]
  return path, texts


def test_conversations_of_a_file_are_answered_into_another(
  policy, asked, tmp_path, capsys
):
  path, texts = asked
  output = tmp_path / "answered.jsonl"
  words = ["generate", str(policy), *GREEDY, "--chat-file", str(path)]
  assert cli.main([*words, "--output", str(output)]) == 0
  first, second = (json.loads(line) for line in output.read_text().splitlines())
  replies = [_answer(policy, text) for text in texts]
  reply = {"role": "assistant", "content": replies[0]}
  before = json.loads(path.read_text().splitlines()[0])
  assert first == before | {"messages": [*before["messages"], reply]}
  assert [turn["content"] for turn in second["messages"]] == ["and?", replies[1]]
  # What was written is training data, and is gone on with.
  loaded = sources.read_jsonl(output)
  assert [row.completion[0].content for row in loaded.records] == replies
  assert cli.main([*words, "--output", str(output)]) == 2  # it exists
  capsys.readouterr()
  assert cli.main(words) == 0
  assert capsys.readouterr().out == printable(output.read_text())


def test_template_arguments_and_template_are_of_the_shell(policy, tmp_path, capsys):
  template = "{{ bos_token }}{% for m in messages %}{{ style }}{{ m.content }}"
  template += "{% endfor %}:"
  (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
  words = ["generate", str(policy), *GREEDY, "--chat", "and?"]
  words += ["--chat-template", str(tmp_path / "own.jinja")]
  assert cli.main([*words, "--template-arguments", "style=so"]) == 0
  assert capsys.readouterr().out == printable(f"{_answer(policy, 'soand?:')}\n")


@pytest.mark.parametrize(
  ("row", "match"),
  [
    ({"messages": [{"role": "assistant", "content": "x"}]}, "answered already"),
    ({"question": "x"}, "'prompt' is not among"),
    ([], "not a JSON object"),
  ],
)
def test_line_without_a_question_is_refused_by_its_number(
  policy, tmp_path, row, match, capsys
):
  path = tmp_path / "asked.jsonl"
  path.write_text(json.dumps({"prompt": "and?"}) + "\n" + json.dumps(row) + "\n")
  assert cli.main(["generate", str(policy), "--chat-file", str(path)]) == 2
  said = capsys.readouterr().err
  assert "asked.jsonl:2" in said and match in said


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
  """A run on messages with a template of a file, which is gone when it has ended."""
  home = tmp_path_factory.mktemp("trained")
  template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}{{ mark }}]"
  template += "{{ m.content }}"
  template += "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
  template += "{% if add_generation_prompt %}[assistant{{ mark }}]{% endif %}"
  (home / "own.jinja").write_text(template, encoding="utf-8")
  texts = synthetic_reviews.generate(12, 0)
  rows = [
    {
      "messages": [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": text},
      ]
    }
    for prompt, text in texts
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (home / "talks.jsonl").write_text(lines, encoding="utf-8")
  words = ["train", "sft", "--model", str(policy), "--data", str(home / "talks.jsonl")]
  words += ["--data.template.chat-template", str(home / "own.jinja")]
  words += ["--data.template.arguments", "mark=!", "--data.limits.completion", "8"]
  words += ["--data.steps", "1", "--data.rows-per-step", "2", "--mesh.data", "1"]
  assert cli.main([*words, "--run-dir", str(home / "run")]) == 0
  (home / "own.jinja").unlink()
  return home / "run", template


def test_run_keeps_the_text_of_its_template(trained, tmp_path, capsys):
  run, template = trained
  experiment, _ = yaml_file.read(run)
  assert experiment.data.template.chat_template == template
  shown = json.loads((run / "shown.json").read_text())["rows"]
  text = "".join(token["text"] for token in shown[0])
  assert text.startswith("<s>[user!]") and "[assistant!]" in text
  # Generation, evaluation and export read the same one.
  words = ["generate", str(run), *GREEDY, "--chat", "and?"]
  assert cli.main(words) == 0
  assert capsys.readouterr().out == printable(
    f"{_answer(run / 'policy', '[user!]and?[assistant!]')}\n"
  )
  assert cli.main(["evaluate", str(run), "--prompts", "2", "--completions", "1"]) == 0
  assert cli.main(["export", str(run), str(tmp_path / "out")]) == 0
  exported = hf_checkpoint.read_tokenizer(tmp_path / "out")
  assert exported.chat_template == template
  capsys.readouterr()
  assert cli.main([*words, "--chat-template", "other.jinja"]) == 2
  assert "is a run, which is read by the one" in capsys.readouterr().err
  assert cli.main([*words, "--template-arguments", "mark=?"]) == 0
  assert capsys.readouterr().out == printable(
    f"{_answer(run / 'policy', '[user?]and?[assistant?]')}\n"
  )


def test_messages_without_a_template_name_the_fix(policy, trained, tmp_path, capsys):
  bare = shutil.copytree(policy, tmp_path / "bare")
  for path in (bare / "chat_template.jinja", bare / "MANIFEST.sha256.json"):
    path.unlink(missing_ok=True)
  tokenizer = json.loads((bare / "tokenizer_config.json").read_text())
  tokenizer.pop("chat_template", None)
  (bare / "tokenizer_config.json").write_text(json.dumps(tokenizer))
  data = trained[0].parent / "talks.jsonl"
  words = ["train", "sft", "--model", str(bare), "--data", str(data)]
  assert cli.main([*words, "--run-dir", str(tmp_path / "run")]) == 2
  assert "--data.template.chat-template FILE.jinja" in capsys.readouterr().err
  assert cli.main(["generate", str(bare), "--chat", "and?"]) == 2
  assert "no chat template" in capsys.readouterr().err
