"""AlpacaEval's file from a run's samples."""

import json

import pytest

from tests import tiny_policy
from xpo_jax import cli
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import alpaca_eval, evaluate_run
from xpo_jax.models.generation_config import GenerationConfig

CONFIG = GenerationConfig(5, greedy=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  return tiny_policy.write(tmp_path_factory.mktemp("policy") / "model")


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_file_has_each_instruction_with_the_sampler_s_output(
  directory, tmp_path, lines, chat
):
  rows = [
    {"instruction": text, "dataset": "own"} for text in ("this", "film", "a plot")
  ]
  instructions, path = tmp_path / "set.json", tmp_path / "out.json"
  text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
  instructions.write_text(text)
  cut = alpaca_eval.write(directory, instructions, path, CONFIG, chat=chat, batch=2)
  written = json.loads(path.read_text())
  prompts = [
    [Turn("user", row["instruction"])] if chat else row["instruction"] for row in rows
  ]
  outputs = evaluate_run.generate(directory, prompts, CONFIG)
  assert [row["output"] for row in written] == [text for (text,) in outputs]
  assert [row["instruction"] for row in written] == ["this", "film", "a plot"]
  assert {row["generator"] for row in written} == {str(directory)}
  assert {row["dataset"] for row in written} == {"own"}
  assert 0 <= cut <= 3


@pytest.mark.parametrize(
  ("rows", "says"),
  [
    ([{"prompt": "a"}], r"row 1 has no text `instruction`; it has \['prompt'\]"),
    ([], "no instructions"),
    ([[1]], "row 1 has no text `instruction`; it has list"),
    ([{"instruction": "a", "input": "b"}], "has an `input`"),
  ],
)
def test_bad_instructions_are_refused(tmp_path, rows, says):
  path = tmp_path / "set.json"
  path.write_text(json.dumps(rows))
  with pytest.raises(ValueError, match=says):
    alpaca_eval.write("nowhere", path, tmp_path / "out.json", CONFIG)


def test_line_that_is_no_json_is_named(tmp_path):
  path = tmp_path / "set.jsonl"
  path.write_text('{"instruction": "a"}\n{no\n')
  with pytest.raises(ValueError, match=r"set\.jsonl:2: not JSON"):
    alpaca_eval.write("nowhere", path, tmp_path / "out.json", CONFIG)


def test_command_writes_the_file_into_the_directory(directory, tmp_path, capsys):
  instructions = tmp_path / "set.json"
  instructions.write_text('[{"instruction": "this film"}]')
  command = ["evaluate", str(directory), "--alpaca-eval", str(instructions)]
  assert cli.main(command) == 2
  assert "--max-completion-tokens" in capsys.readouterr().err
  assert cli.main([*command, "--max-completion-tokens", "4"]) == 0
  (row,) = json.loads((directory / alpaca_eval.FILE).read_text())
  assert row["instruction"] == "this film" and row["dataset"] == "set"
