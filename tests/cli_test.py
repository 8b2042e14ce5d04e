"""The command line, and the README: every command in it runs here or is `make`."""

import ast
import contextlib
import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests import hub_cache, tiny_policy, xla_flags
from xpo_jax import cli, objectives
from xpo_jax.config import trust
from xpo_jax.data import synthetic_reviews
from xpo_jax.evaluation import checkpoint_win_rates
from xpo_jax.feedback import reward_model
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies.sentiment.settings import SentimentStudy
from xpo_jax.train import progress, run_directory

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.M | re.S)


def _commands():
  lines = [
    line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()
  ]
  return [line.partition("#")[0].strip() for line in lines if line.strip()]


# One interpreter for all commands: imports and compiles are paid once.
_DRIVER = """
import contextlib, io, json, shlex, sys
from xpo_jax import cli
out = {}
for command in json.load(sys.stdin):
  shown, wrong = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(wrong):
    code = cli.main(shlex.split(command)[1:])
  out[command] = [code, shown.getvalue(), wrong.getvalue()]
print(json.dumps(out))
"""


# What a user may get wrong after the walk, and the word that says so.
_REFUSED = {
  "xpo train my_recipe.py --run-dir runs/mine": "exists",
  "xpo export runs/mine runs": "exists",
  "xpo export runs my_other": "neither a run nor",
  "xpo train my_recipe.py --run-dir runs/new --data.path none.jsonl": "no such file",
  "xpo check my_recipe.py --mesh.fsdp 3": "devices",
  "xpo generate runs/mine x --temperature 0": "temperature",
  "xpo evaluate runs/mine --reward json:nothing": "json has no reward function",
}


def _write_hub(cache, rows):
  """A cache of the hub with the README's model, of random weights, and its data."""
  model = hub_cache.repository(cache, "model", "Qwen/Qwen2.5-0.5B-Instruct")
  tiny_policy.write_family(model, "qwen2")
  name = "HuggingFaceH4/ultrafeedback_binarized"
  data = hub_cache.repository(cache, "dataset", name)
  asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
  columns = {"prompt": [row["prompt"] for row in rows]}
  for side in ("chosen", "rejected"):
    columns[side] = [
      [*turns, {"role": "assistant", "content": row[side]}]
      for turns, row in zip(asked, rows, strict=True)
    ]
  pyarrow.parquet.write_table(pa.table(columns), data / "train_prefs.parquet")
  (data / "README.md").write_text(
    "---\nconfigs:\n- config_name: default\n  data_files:\n"
    "  - split: train_prefs\n    path: train_prefs.parquet\n---\n"
  )


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
  """The README's walk, verbatim, then refusals: `{command: (code, out, err)}`."""
  home = tmp_path_factory.mktemp("readme")
  (recipe,) = [t for k, t in BLOCKS if k == "python" and "def experiment" in t]
  (home / "my_recipe.py").write_text(recipe, encoding="utf-8")
  (row,) = [t for k, t in BLOCKS if k == "json"]
  texts, others = synthetic_reviews.generate(60, 0), synthetic_reviews.generate(60, 1)
  rows = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    for (prompt, chosen), (_, rejected) in zip(texts, others, strict=True)
    if chosen != rejected
  ]
  lines = [row.strip(), *map(json.dumps, rows)]
  (home / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  _write_hub(home / "hub", rows)
  commands = [c for c in _commands() if c.startswith("xpo ")]
  environment = dict(os.environ) | {"HF_HUB_CACHE": str(home / "hub")}
  environment["XLA_FLAGS"] = xla_flags.COMPILE_FAST  # one device, as on a laptop
  done = subprocess.run(
    [sys.executable, "-c", _DRIVER],
    input=json.dumps([*commands, *_REFUSED]),
    cwd=home,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return home, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", [c for c in _commands() if c.startswith("xpo ")])
def test_readme_command_succeeds(walked, command):
  _, results = walked
  code, shown, wrong = results[command]
  assert code == 0, wrong[-3000:]
  assert shown.strip()


@pytest.mark.parametrize(("command", "word"), _REFUSED.items())
def test_refusal_is_one_clean_line(walked, command, word):
  _, results = walked
  code, _, wrong = results[command]
  assert code == 2
  assert word in wrong and "Traceback" not in wrong


def test_walk_leaves_what_the_readme_says(walked):
  home, results = walked
  run = home / "runs" / "mine"
  assert (run / "report.html").exists() and (run / "report.md").exists()
  assert (home / "my_policy" / "model.safetensors").exists()
  evaluation = json.loads((run / "evaluation.json").read_text())
  assert {"reward", "kl", "preference_accuracy"} <= set(evaluation["policy"])
  config = (run / "config.yaml").read_text()
  assert "beta: 0.2" in config  # the override of the shell
  again = find_recipe.load(str(run / "config.yaml")).experiment  # as the report says
  assert again.objective.hparams["beta"] == 0.2
  generate, _ = [c for c in _commands() if c.startswith("xpo generate")]
  assert len(results[generate][1].strip().splitlines()) == 2
  report = (run / "report.html").read_text()
  assert "First loss as it must be" in report
  assert 'class="loss"' in report  # tokens with their mask


def test_check_trains_nothing_and_shows_both_stages(walked):
  _, results = walked
  (check,) = [c for c in _commands() if c.startswith("xpo check")]
  shown = results[check][1]
  assert "sft(" in shown and "dpo(" in shown
  assert "memory, temporaries" in shown
  assert "rows 60" in shown or "rows 61" in shown


def test_every_other_readme_command_is_covered():
  extras = re.findall(r'^    "(\w+)": \[', (ROOT / "setup.py").read_text(), flags=re.M)
  makefile = (ROOT / "Makefile").read_text()
  for command in _commands():
    words = shlex.split(command)
    if words[0] == "make":
      assert re.search(rf"^{words[1]}:", makefile, flags=re.M), command
    elif words[0] == "pip":
      assert re.search(r"\[(\w+)\]", words[-1]).group(1) in extras, command
    else:
      assert words[0] == "xpo", command


def test_readme_python_runs():
  for kind, text in BLOCKS:
    if kind == "python":
      exec(compile(text, "README.md", "exec"), {"__name__": "readme"})


def test_readme_flags_are_fields():
  from xpo_jax.config import command_line

  scope = {}
  (recipe,) = [t for k, t in BLOCKS if k == "python" and "def experiment" in t]
  exec(compile(recipe, "README.md", "exec"), scope)
  records, rollouts = scope["experiment"](), find_recipe.load("rloo").experiment
  for flags in re.findall(r"`(--[a-z].*?)`", README):
    if " " in flags:
      experiment = rollouts if flags.startswith("--data.sampling.") else records
      command_line.from_args(experiment, shlex.split(flags))


def test_readme_names_objectives_that_exist():
  table = re.search(r"\| feedback \| objectives \|\n(.*?)\n\n", README, flags=re.S)[1]
  named = re.findall(r"`(\w+)`", table)
  assert len(named) == len(set(named)) > 40
  assert set(named) <= set(objectives.NAMES)


def test_readme_tree_names_every_folder_of_the_package():
  (tree,) = [t for k, t in BLOCKS if k == "" and "xpo_jax/" in t]
  named = [line.split()[0] for line in tree.splitlines() if line.split()[0][-1] == "/"]
  folders = {path.parent.name for path in (ROOT / "xpo_jax").glob("*/__init__.py")}
  assert folders <= {name.rstrip("/") for name in named}
  for name in named:
    assert (ROOT / name).is_dir() or (ROOT / "xpo_jax" / name).is_dir(), name


def _xpo(*args, cwd=None):
  return subprocess.run(
    [sys.executable, "-m", "xpo_jax.cli", *args],
    capture_output=True,
    text=True,
    cwd=cwd,
  )


def test_help_and_list_import_no_jax():
  code = (
    "import sys, contextlib\n"
    "from xpo_jax import cli\n"
    "with contextlib.suppress(SystemExit): cli.main(['--help'])\n"
    "assert cli.main(['list']) == 0\n"
    "heavy = {'jax', 'flax', 'transformers', 'orbax', 'tyro', 'numpy'}\n"
    "print('loaded:', sorted(heavy & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "loaded: []"
  assert all(name in done.stdout for name in objectives.NAMES)


@pytest.mark.parametrize("args", [["list"], ["explain", "dpo"], ["train", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_closed_by_its_reader_is_no_error(args, unbuffered):
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, "-m", "xpo_jax.cli", *args],
    env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(write)
  assert done.returncode == 141
  assert not done.stderr


def test_error_of_another_pipe_is_reported(monkeypatch, capsys):
  def broken(*_):
    raise BrokenPipeError("the judge hung up")

  monkeypatch.setattr(cli, "_list", broken)
  assert cli.main(["list"]) == 2
  assert "the judge hung up" in capsys.readouterr().err


def test_error_is_one_line_and_exit_code_2():
  done = _xpo("explain", "dpoo")
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and "did you mean 'dpo'" in done.stderr
  assert not done.stdout


def test_help_of_a_command_without_a_recipe_is_its_usage(capsys):
  with pytest.raises(SystemExit) as left:
    cli.main(["train", "--help"])
  assert left.value.code == 0
  assert "--run-dir" in capsys.readouterr().out


def test_debug_shows_the_traceback(capsys):
  assert cli.main(["explain", "dpoo"]) == 2
  assert "Traceback" not in capsys.readouterr().err
  with pytest.raises(ValueError, match="dpoo"):
    cli.main(["explain", "dpoo", "--debug"])


@pytest.mark.parametrize(
  ("args", "match"),
  [
    (["train", "nothing.py"], "no such file"),
    (["train"], "name one"),
    (["resume", "nowhere"], "not a run"),
    (["report", "nowhere"], "not a run"),
    (["evaluate", "nowhere"], "not a run"),
    (["list", "--bet", "2"], "does not know --bet 2"),
    (["evaluate", "nowhere", "--reward", "json"], "not MODULE:FUNCTION"),
    (["evaluate", "nowhere", "--reward", "json:lods"], "did you mean 'loads'"),
    (["evaluate", "nowhere", "--reward", "no_such:f"], "No module named 'no_such'"),
    (["evaluate", "nowhere", "--limit", "3"], "--limit is of --tasks"),
    (["evaluate", "nowhere", "--chat"], "--chat is of --tasks"),
    (["train", "dpo", "--processes", "2"], "--processes 2 is of --distributed: add"),
    (
      ["resume", "run", "--distributed", "--process-index", "1"],
      "--process-index 1: give all of --coordinator, --processes, --process-index",
    ),
    (
      ["evaluate", "nowhere", "--reward-bench", "f", "--reward", "a:b"],
      "takes no reward",
    ),
  ],
)
def test_bad_arguments_say_what_is_wrong(args, match, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(args) == 2
  assert match in capsys.readouterr().err


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device", "policy"),
    ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device"),
  ],
)
def test_full_disk_is_one_line_with_the_way_on(error, monkeypatch, capsys):
  from xpo_jax.report import run_page

  def full(run_dir):
    raise error

  monkeypatch.setattr(run_page, "write", full)
  assert cli.main(["report", "run"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "No space left on device" in line and "free some space" in line


def test_unknown_recipe_is_met_with_the_nearest(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "experiments").mkdir()
  path = tmp_path / "experiments" / "hh_pairs.py"
  path.write_text(
    '"""DPO on HH."""\n\n'
    "from xpo_jax.studies.sentiment.settings import SentimentStudy\n\n\n"
    "def experiment():\n  return SentimentStudy(num_texts=7)\n"
  )
  (tmp_path / "experiments" / "helpers.py").write_text("X = 1\n")
  names = find_recipe.names()
  assert names["hh_pairs"] == path and "helpers" not in names
  assert find_recipe.summary(path) == "DPO on HH."
  expected = SentimentStudy(num_texts=7)
  assert (
    find_recipe.load("hh_pairs").experiment
    == find_recipe.load(str(path)).experiment
    == expected
  )
  with pytest.raises(ValueError, match="did you mean 'hh_pairs'"):
    find_recipe.load("hh_pair")
  with pytest.raises(ValueError, match="no function experiment"):
    find_recipe.load(str(tmp_path / "experiments" / "helpers.py"))


def test_what_is_wrong_with_a_recipe_file_is_said(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  place = tmp_path / "experiments"
  place.mkdir()
  (place / "broken.py").write_text("def experiment():\n  return (\n")
  (place / "seven.py").write_text("def experiment():\n  return 7\n")
  said = {
    ("train", "broken"): "broken.py, line 2: '(' was never closed; mend it",
    ("check", "seven"): "experiment() returned 7; it must return an Experiment",
    ("check", "dpo_hh", "path"): "'path' is no argument; write NAME=VALUE",
    (
      "check",
      "ppo_ptx",
      "gamma=abc",
    ): "recipe ppo_ptx: gamma is 'abc'; it must be a number",
    ("check", "dpo_hh", "--objective.beta", "0.2", "path=F"): (
      "path=F: the recipe's own arguments stand before the first flag"
    ),
    ("check", "dpo_hh", "--seed", "1", "path=F", "--reference", "a=b"): (
      "path=F: the recipe's own arguments stand before the first flag"
    ),
  }
  for arguments, expected in said.items():
    assert cli.main(list(arguments)) == 2
    assert expected in capsys.readouterr().err
  with pytest.raises(SystemExit):  # a flag's value, whatever stands before the flags
    cli.main(["check", "dpo_hh", "path=F", "--seed", "path=F"])
  assert "parsing --seed" in capsys.readouterr().err
  assert cli.main(["list"]) == 0  # the others are listed all the same
  assert "'(' was never closed" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a: [1", "is not YAML"),
    ("versions: {}\n", "holds no `experiment`"),
    ("experiment: {}\n", "has format 1, and this version reads format 2"),
    ("", "holds no `experiment`"),
  ],
)
def test_a_damaged_config_is_said(text, expected, tmp_path, capsys):
  (tmp_path / "config.yaml").write_text(text)
  for command in ("report", "resume"):
    assert cli.main([command, str(tmp_path)]) == 2
    assert expected in capsys.readouterr().err


@pytest.fixture
def foreign_run(tmp_path, monkeypatch):
  """A run directory that names functions of a harmless module, which leaves a mark when
  it is imported and another when its function is called; the directory of the marks."""
  monkeypatch.setattr(trust, "_trusted", set())
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  marks = tmp_path / "marks"
  marks.mkdir()
  (tmp_path / "harmless_mark.py").write_text(
    "from pathlib import Path\n"
    f"(Path({str(marks)!r}) / 'imported').touch()\n"
    f"def made(command=''):\n  (Path({str(marks)!r}) / 'called').touch()\n"
  )
  objective = "{name: 'harmless_mark:made', command: touch marks/shell}"
  source = "{function: 'harmless_mark:made', command: x}"
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.yaml").write_text(
    "format: 2\ntrust: [harmless_mark]\nexperiment:\n"
    f"  objective: {objective}\n"
    f"  data: {{kind: Rollouts, prompts: {{path: 'synthetic:20'}}, "
    f"feedback: {{source: {source}}}}}\n"
    "  start: {kind: Pretrained, directory: nowhere}\n"
  )
  yield marks
  sys.modules.pop("harmless_mark", None)


_READING = (
  "train run/config.yaml --run-dir new",
  "evaluate run",
  "resume run",
  "generate run prompt",
)


@pytest.mark.parametrize("command", _READING)
def test_run_that_names_foreign_code_is_refused_before_it_is_imported(
  command, foreign_run, capsys
):
  assert cli.main(command.split()) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "experiment.objective names 'harmless_mark:" in said
  assert said.endswith(f": xpo {command} --trust harmless_mark\n")
  assert not list(foreign_run.iterdir())


@pytest.mark.parametrize("command", _READING)
@pytest.mark.parametrize("place", ["first", "last", "joined"])
def test_trusted_module_is_imported(command, place, foreign_run, capsys):
  option = ["--trust", "harmless_mark"]
  words = command.split()
  given = {
    "first": [*option, *words],
    "last": [*words, *option],
    "joined": [*words, "=".join(option)],
  }
  with contextlib.suppress(AttributeError):  # the function makes no objective
    cli.main(given[place])
  assert "to trust" not in capsys.readouterr().err
  assert "imported" in {path.name for path in foreign_run.iterdir()}


def test_report_and_list_build_nothing_of_a_file(foreign_run, capsys):
  assert cli.main(["report", "run"]) == cli.main(["list"]) == 0
  assert capsys.readouterr().out.startswith("run/report.html")
  page = Path("run/report.md").read_text(encoding="utf-8")
  assert "The objective could not be built here: experiment.objective names" in page
  assert not list(foreign_run.iterdir())


@pytest.mark.parametrize("path", ["run", "run/", "run/config.yaml"])
def test_check_of_a_run_needs_no_trust_and_says_what_it_leaves(
  path, foreign_run, capsys
):
  assert cli.main(["check", path]) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  assert lines == [
    f"{field} names 'harmless_mark:made', which is not trusted: not imported"
    for field in ("experiment.objective", "experiment.data.feedback.source")
  ]
  again = f"xpo check {path} --trust harmless_mark"
  assert last == f"nothing was built, read or checked; if you know that code: {again}"
  assert not list(foreign_run.iterdir())
  with contextlib.suppress(AttributeError):  # the function makes no objective
    cli.main(shlex.split(again)[1:])
  assert "imported" in {mark.name for mark in foreign_run.iterdir()}


def test_system_of_a_config_is_not_run(foreign_run, capsys):
  config = Path("run/config.yaml")
  config.write_text(config.read_text().replace("harmless_mark:made", "os:system"))
  for command in _READING:
    assert cli.main(command.split()) == 2
  for command in ("check run", "report run"):
    assert cli.main(command.split()) == 0
  assert "--trust os" in capsys.readouterr().err
  assert not list(foreign_run.iterdir())


def test_trust_without_a_module_is_refused(capsys):
  for words in (["list", "--trust"], ["--trust", "--debug", "list"]):
    assert cli.main(words) == 2
    assert "--trust needs a module" in capsys.readouterr().err


@pytest.mark.parametrize(("stopped", "code"), [("", 0), ("SIGTERM", 75)])
def test_unfinished_run_has_an_exit_code_of_its_own(stopped, code, monkeypatch):
  from xpo_jax.report import run_page
  from xpo_jax.train import loop

  def result(run, *_):
    return loop.Result(Path("run"), None, None, None, 1, not stopped, stopped)

  for name in ("train", "resume"):
    monkeypatch.setattr(loop, name, result)
  monkeypatch.setattr(run_page, "write", lambda directory: directory)
  monkeypatch.setattr(cli, "_recipe", lambda args, overrides: find_recipe.Recipe(None))
  monkeypatch.setattr(Path, "exists", lambda path: True)
  assert cli.main(["train", "dpo_hh"]) == code
  assert cli.main(["resume", "run"]) == code


@pytest.mark.parametrize(
  ("interrupt", "code", "said"),
  [
    (progress.Stopped("stopped by SIGINT: xpo resume s"), 75, "xpo resume s"),
    (KeyboardInterrupt(), 130, "interrupted"),
  ],
)
def test_interrupted_study_has_an_exit_code_of_its_own(
  interrupt, code, said, monkeypatch, capsys
):
  def run(settings, run_dir):
    raise interrupt

  recipe = find_recipe.Recipe(None, run)
  monkeypatch.setattr(cli, "_recipe", lambda args, overrides: recipe)
  assert cli.main(["train", "rlaif"]) == code
  assert said in capsys.readouterr().err


_STUDY = """
import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Settings:
  rater: object = None


def experiment():
  return Settings()


def run(settings, run_dir):
  (run_dir / "ran").touch()
  return 0
"""


def _study(directory, **record):
  directory.mkdir()
  record = {"recipe": "elsewhere", "class": "Settings", "settings": {}} | record
  (directory / "study.json").write_text(json.dumps(record))


@pytest.mark.usefixtures("foreign_run")
def test_recipe_of_a_study_by_path_runs_only_if_it_is_trusted(tmp_path, capsys):
  _study(tmp_path / "study")
  path = tmp_path / "study" / "elsewhere.py"
  path.write_text(_STUDY)
  assert cli.main(["resume", "study"]) == 2
  assert "xpo resume study --trust PATH.py" in capsys.readouterr().err
  assert not (tmp_path / "study" / "ran").exists()
  assert cli.main(["resume", "study", "--trust", str(path)]) == 0
  assert (tmp_path / "study" / "ran").exists()


@pytest.mark.usefixtures("foreign_run")
def test_study_that_another_process_writes_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(demo, "environment", lambda: None)
  _study(tmp_path / "study")
  path = tmp_path / "study" / "elsewhere.py"
  path.write_text(_STUDY)
  with run_directory.lock_study(tmp_path / "study", lambda line: None):
    for command in (
      f"train {path} --run-dir study",
      f"resume study --trust {path}",
      "demo --run-dir study",
    ):
      assert cli.main(command.split()) == 2
      assert "study is being written by process" in capsys.readouterr().err
  assert not (tmp_path / "study" / "ran").exists()


@pytest.mark.parametrize(
  ("record", "expected"),
  [
    ({"settings": {"rater": {"function": "os:system"}}}, "settings.rater names 'os:sy"),
    ({"class": "Path"}, "class is 'Path', which"),
    ({"class": "run"}, "class is 'run', which"),
  ],
)
@pytest.mark.usefixtures("foreign_run")
def test_settings_of_a_study_name_no_foreign_code(record, expected, tmp_path, capsys):
  (tmp_path / "experiments").mkdir()  # whose recipes are the user's own
  (tmp_path / "experiments" / "elsewhere.py").write_text(_STUDY)
  _study(tmp_path / "study", **record)
  assert cli.main(["resume", "study"]) == 2
  assert expected in capsys.readouterr().err
  assert not (tmp_path / "study" / "ran").exists()
  (tmp_path / "study" / "study.json").unlink()
  (tmp_path / "study").rmdir()
  _study(tmp_path / "study")
  assert cli.main(["resume", "study"]) == 0


def test_unknown_hparam_is_refused_by_name(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (recipe,) = [t for k, t in BLOCKS if k == "python" and "def experiment" in t]
  bad = recipe.replace(
    'ObjectiveConfig("dpo", beta=0.1)', 'ObjectiveConfig("dpo", gamma=0.1)'
  )
  ast.parse(bad)
  (tmp_path / "bad.py").write_text(bad)
  assert cli.main(["check", "bad.py"]) == 2
  assert "dpo has no hyperparameter 'gamma'" in capsys.readouterr().err


def test_explain_shows_equation_paper_reduction_and_needs(capsys):
  assert cli.main(["explain", "kto"]) == 0
  shown = capsys.readouterr().out
  for part in ("arXiv:2402.01306", "Reduction", "RATED_MISMATCHED", "desirable_BK"):
    assert part in shown


def test_reward_of_an_evaluation_may_be_a_reward_model(tmp_path, monkeypatch):
  loaded = []

  def scorer(directory):
    loaded.append(directory)
    return lambda prompts, completions: np.zeros(len(prompts))

  monkeypatch.setattr(reward_model, "scorer", scorer)
  for name in (str(tmp_path), "hub:org/name"):
    judge = checkpoint_win_rates.judge(None, None, cli._reward(name))
    assert judge.name == name and judge.scorer is not None
  assert loaded == [str(tmp_path), "hub:org/name"]
