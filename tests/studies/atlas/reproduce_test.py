"""Tables are rebuilt from their cells, which are run once, whatever ends the run."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import pytest

from xpo_jax import cli
from xpo_jax.studies.atlas import cells, find_tables, pages, reproduce, worlds
from xpo_jax.studies.atlas.cells import Cell
from xpo_jax.studies.exact import bandits, sampling
from xpo_jax.studies.real_model import cells as chat_cells

TABLE = '''
"""A table of two small arms."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import sampling

TABLE = Table(
  paper="RLAIF (Google)",
  method="{method}",
  claim="Both orders agree better.",
  where="section 2.1",
  design="Simulated.",
  contrary="They agree no better.",
  departs="A simulated labeller & 100 % of it.",
  arms=({arms}),
  predictions=(
    Prediction(
      "agreement at bias 3 above a half",
      "fraction",
      lambda r: r.metric("labeller", "agreement", 3.0) - 0.5,
      ABOVE,
    ),
  ),
  plot=Plot(None, "agreement", "bias, nats", "agreement", "It falls."),
  seeds=3,
)
'''


def _table(method, **biases_of_series):
  arms = "".join(
    f'*sweep("{series}", sampling.position_bias, "bias", {biases}, verdicts="one", '
    f"pairs=3000), "  # no cell of a table of the package
    for series, biases in biases_of_series.items()
  )
  return TABLE.format(method=method, arms=arms)


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A working directory with two tables that share cells."""
  folder = tmp_path / "experiments" / worlds.FOLDERS[worlds.EXACT]
  folder.mkdir(parents=True)
  (folder / "lee_first.py").write_text(_table("first", labeller=(0.0, 3.0)))
  (folder / "lee_second.py").write_text(_table("second", labeller=(3.0, 5.0)))
  (tmp_path / "experiments" / "results").mkdir()
  monkeypatch.chdir(tmp_path)
  cells._surroundings.cache_clear()  # its commit is of the working directory
  yield tmp_path / "experiments" / "results"
  cells._surroundings.cache_clear()


@pytest.fixture
def ran(monkeypatch):
  """The cells that are run, in order; raises when told to."""
  count = []

  def run(cell, original=cells.run):
    if len(count) == run.stop_before:
      raise KeyboardInterrupt
    count.append((cell.settings["bias"], cell.seed))
    return original(cell)

  run.stop_before = None
  monkeypatch.setattr(cells, "run", run)
  return count, run


def _contents(folder):
  """What a table's files hold, but for times."""
  lines = [line | {"seconds": 0} for line in cells.read(folder / cells.FILE)]
  found = pages.read(folder) | {"seconds": 0}
  page = (folder / pages.MARKDOWN).read_text().split("| cost |")[0]
  others = [(folder / name).read_text() for name in (pages.LATEX, pages.FIGURE)]
  return lines, found, page, others


KILLED = """
import os, signal
from pathlib import Path
from xpo_jax.studies.atlas import cells, reproduce

def append(path, line, original=cells.append, count=[]):
  count.append(line)
  if len(count) == 2:
    with path.open("a") as file:
      file.write(cells._text(line)[:50])
    os.kill(os.getpid(), signal.SIGKILL)
  original(path, line)

cells.append = append
home = Path("experiments/results").resolve()
reproduce.rebuild(reproduce.plan(["lee_first"], home), home)
"""


def test_three_kills_within_a_line_leave_the_same_files(home, ran):
  count, _ = ran
  for _ in range(3):
    done = subprocess.run([sys.executable, "-c", KILLED], timeout=300)
    assert done.returncode == -signal.SIGKILL
  assert cli.main(["reproduce", "lee_first"]) == 0
  assert len(count) == 3  # of 6: each process ended one and lost one
  after_kills = _contents(home / "lee_first")
  shutil.rmtree(home / "lee_first")
  assert cli.main(["reproduce", "lee_first"]) == 0
  assert _contents(home / "lee_first") == after_kills
  assert {path.name for path in (home / "lee_first").iterdir()} == {
    cells.FILE,
    *(pages.FINDING, pages.MARKDOWN, pages.LATEX, pages.FIGURE),
  }


def test_stopped_run_goes_on_and_leaves_the_same_files(home, ran):
  count, run = ran
  assert cli.main(["reproduce", "lee_first"]) == 0
  whole = _contents(home / "lee_first")
  shutil.rmtree(home / "lee_first")
  count.clear()
  for stop in (2, 5):
    run.stop_before = stop
    with pytest.raises(KeyboardInterrupt):
      reproduce.rebuild(reproduce.plan(["lee_first"], home), home)
  run.stop_before = None
  assert cli.main(["reproduce", "lee_first"]) == 0
  assert count == [(bias, seed) for bias in (0.0, 3.0) for seed in range(3)]
  assert _contents(home / "lee_first") == whole


def test_tables_share_cells_and_more_seeds_run_the_new_ones_alone(home, ran):
  count, _ = ran
  assert cli.main(["reproduce", "first"]) == 0
  count.clear()
  assert cli.main(["reproduce", "second"]) == 0
  assert count == [(5.0, seed) for seed in range(3)]
  count.clear()
  assert cli.main(["reproduce", "second", "--seeds", "4"]) == 0
  assert count == [(3.0, 3), (5.0, 3)]
  assert pages.read(home / "lee_second")["seeds"] == 4


def test_fewer_seeds_replace_no_finding_and_no_cell(home, ran, capsys, tmp_path):
  count, _ = ran
  assert cli.main(["reproduce", "first", "--seeds", "4"]) == 0
  file = home / "lee_first" / cells.FILE
  before = file.read_text()
  for more in ([], ["--seeds", "2"], ["--plan"]):
    assert cli.main(["reproduce", "first", *more]) == 2
    assert "a finding of 4 seeds; write one of fewer" in capsys.readouterr().err
  assert file.read_text() == before
  elsewhere = tmp_path / "elsewhere"
  shutil.copytree(home / "lee_first", elsewhere / "lee_first")
  (elsewhere / "lee_first" / pages.FINDING).unlink()
  count.clear()
  command = ["reproduce", "first", "--seeds", "2", "--results", str(elsewhere)]
  assert cli.main(command) == 0
  assert not count
  assert pages.read(elsewhere / "lee_first")["seeds"] == 2
  seeds = [line["seed"] for line in cells.read(elsewhere / "lee_first" / cells.FILE)]
  assert seeds == [0, 1, 0, 1, 2, 3, 2, 3]
  assert cli.main([*command[:2], "--render", *command[4:]]) == 0
  assert pages.read(elsewhere / "lee_first")["seeds"] == 2


def test_table_without_cells_is_not_rendered_and_leaves_no_folder(home, capsys):
  assert cli.main(["reproduce", "first", "--render"]) == 2
  assert "no cell of" in capsys.readouterr().err
  assert not (home / "lee_first").exists()


def test_table_without_cells_keeps_no_other_from_being_rendered(home, capsys):
  assert cli.main(["reproduce", "second"]) == 0
  (home / "lee_second" / pages.MARKDOWN).unlink()
  assert cli.main(["reproduce", "--all", "--render"]) == 2
  error = capsys.readouterr().err
  assert "lee_first" in error and error.rstrip().endswith(
    "the pages of all others were written"
  )
  assert (home / "lee_second" / pages.MARKDOWN).exists()
  assert not (home / "lee_first").exists()


def test_cells_of_arms_that_a_table_no_longer_has_are_left_out(home, capsys):
  assert cli.main(["reproduce", "first"]) == 0
  file = home / "lee_first" / cells.FILE
  line = cells.read(file)[0]
  settings = line["settings"] | {"bias": 9.0}
  cells.append(file, line | {"settings": settings, "digest": "other"})
  assert cli.main(["reproduce", "first"]) == 0
  assert "left out 1 cells of arms" in capsys.readouterr().out
  assert len(cells.read(file)) == 6


def test_series_are_named_one_by_one_whatever_is_in_a_name(home, ran):
  count, _ = ran
  series = {"one, first": (0.0,), "labeller": (3.0,), "two": (5.0,)}
  path = home.parent / worlds.FOLDERS[worlds.EXACT] / "lee_first.py"
  path.write_text(_table("first", **series))
  assert cli.main(["reproduce", "first", "--only", "one, first", "two"]) == 0
  assert sorted(set(count)) == [(b, s) for b in (0.0, 5.0) for s in range(3)]
  assert pages.read(home / "lee_first") is None
  count.clear()
  assert cli.main(["reproduce", "first"]) == 0
  assert count == [(3.0, seed) for seed in range(3)]


def test_only_a_series_plan_and_nothing_to_do(home, ran, capsys):
  count, _ = ran
  assert cli.main(["reproduce", "first", "--plan"]) == 0
  assert "6 cells,    0 cached,    6 to run" in capsys.readouterr().out
  assert cli.main(["reproduce", "first", "--only", "nobody"]) == 2
  assert "allowed: labeller" in capsys.readouterr().err
  assert cli.main(["reproduce", "first", "--plan", "--only", "nobody"]) == 2
  assert "allowed: labeller" in capsys.readouterr().err
  for flag in ("--check", "--render"):
    command = ["reproduce", "first", flag, "--seeds", "2", "--only", "labeller"]
    assert cli.main(command) == 2
    assert "leave out --only and --seeds" in capsys.readouterr().err
  assert not count
  assert cli.main(["reproduce", "first", "--only", "labeller"]) == 0
  assert len(count) == 6
  assert cli.main(["reproduce", "first"]) == 0
  assert len(count) == 6
  assert cli.main(["reproduce"]) == 2
  assert "lee_first" in capsys.readouterr().err


def test_check_fails_where_a_verdict_does_not_hold(home, capsys):
  assert cli.main(["reproduce", "first"]) == 0
  assert cli.main(["reproduce", "first", "--check"]) == 0
  path = home / "lee_first" / pages.FINDING
  found = json.loads(path.read_text())
  assert found["verdict"] == "agrees"
  path.write_text(json.dumps(found | {"verdict": "contrary"}))
  before = path.read_text()
  assert cli.main(["reproduce", "first", "--check"]) == 1
  assert "committed verdict is 'contrary', now 'agrees'" in capsys.readouterr().out
  assert path.read_text() == before


def test_check_compares_each_prediction_and_runs_a_shared_cell_once(home, ran, capsys):
  count, _ = ran
  assert cli.main(["reproduce", "first", "second"]) == 0
  for name in ("lee_first", "lee_second"):
    (home / name / cells.FILE).unlink()
  path = home / "lee_second" / pages.FINDING
  found = json.loads(path.read_text())
  found["predictions"][0]["verdict"] = "not separable"
  path.write_text(json.dumps(found))
  count.clear()
  assert cli.main(["reproduce", "first", "second", "--check"]) == 1
  assert len(count) == len(set(count)) == 9
  (line,) = (x for x in capsys.readouterr().out.splitlines() if "committed" in x)
  assert line == (
    "lee_second, agreement at bias 3 above a half: the committed verdict is 'not "
    "separable', now 'agrees'"
  )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_metric_that_is_not_finite_is_named_on_the_page(home, monkeypatch, bad):
  original = sampling.position_bias

  def run(seed, **settings):
    metrics = dict(original(seed, **settings))
    if (seed, settings["bias"]) == (1, 3.0):
      metrics["agreement"] = bad
    return metrics

  run.__module__, run.__qualname__ = original.__module__, original.__qualname__
  monkeypatch.setattr(sampling, "position_bias", run)
  assert cli.main(["reproduce", "first"]) == 0
  found = pages.read(home / "lee_first")
  assert found["verdict"] == "not testable here"
  assert found["not_finite"] == ["labeller at 3, seed 1: agreement"]
  page = (home / "lee_first" / pages.MARKDOWN).read_text()
  assert "labeller at 3, seed 1: agreement" in page
  assert "| labeller | 3.0 | not finite |" in page.replace("| 3 |", "| 3.0 |")
  files = [path.read_text() for path in (home / "lee_first").iterdir()]
  assert not any("NaN" in text or "Infinity" in text for text in files)


def test_cell_after_a_cut_line_is_not_lost(tmp_path):
  path = tmp_path / cells.FILE
  line = {"run": "a:b", "settings": {}, "seed": 0}
  cells.append(path, line)
  with path.open("a") as file:
    file.write('{"digest": "cut sho')
  cells.append(path, line | {"seed": 1})
  cells.append(path, line | {"seed": 2})
  assert [line["seed"] for line in cells.read(path)] == [0, 1, 2]


def test_pages_show_claim_interval_verdict_and_command(home):
  assert cli.main(["reproduce", "first"]) == 0
  page = (home / "lee_first" / pages.MARKDOWN).read_text()
  found = pages.read(home / "lee_first")
  (prediction,) = found["predictions"]
  shown = (
    f"{prediction['mean']:.3f} [{prediction['low']:.3f}, {prediction['high']:.3f}]"
  )
  assert shown in page and "**agrees**" in page and "`xpo reproduce lee_first`" in page
  latex = (home / "lee_first" / pages.LATEX).read_text()
  assert shown in latex and r"95\,\%" in latex
  assert "<svg" in (home / "lee_first" / pages.FIGURE).read_text()


def test_digest_is_of_settings_seed_and_code(monkeypatch):
  one = Cell(sampling.position_bias, {"bias": 1.0}, 0)
  pairs = {"objective": "dpo", "hparams": {"beta": 0.1}}
  keys = {
    cells.digest(cell)
    for cell in (
      one,
      Cell(sampling.position_bias, {"bias": 2.0}, 0),
      Cell(sampling.position_bias, {"bias": 1.0}, 1),
      Cell(bandits.pairs, pairs, 0),
      Cell(bandits.pairs, pairs | {"objective": "ipo"}, 0),
    )
  }
  assert len(keys) == 5
  assert cells.digest(Cell(sampling.position_bias, {"bias": 1.0}, 0)) in keys
  files = []
  monkeypatch.setattr(cells.code_digest, "digest", lambda names: files.append(names))
  cells._code.cache_clear()
  cells.digest(Cell(bandits.pairs, pairs, 0))
  cells._code.cache_clear()
  assert files == [["xpo_jax.studies.exact.bandits", "xpo_jax.objectives._dpo"]]


CHAT_TABLE = '''
"""The start of a chat model."""

import dataclasses

from xpo_jax.studies.atlas import table, worlds
from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table
from xpo_jax.studies.real_model import claims

TABLE = Table(
  paper="DPO",
  method="dpo",
  claim="It is glad.",
  where="nowhere",
  design="Samples.",
  contrary="It is not.",
  departs="Small.",
  arms=(claims.START,),
  predictions=(
    Prediction("reward", "of 1", table.metric("reward", ("start", None)), ABOVE),
  ),
  plot=Plot("kl", "reward", "nats", "reward", "A point."),
  seeds=1,
  world=worlds.CHAT_MODEL,
)
'''


@pytest.fixture
def chat(home, monkeypatch):
  """A working directory with a table on a chat model; the models that were judged."""
  folder = home.parent / worlds.FOLDERS[worlds.CHAT_MODEL]
  folder.mkdir()
  (folder / "glad_chat.py").write_text(CHAT_TABLE)
  judged = []

  def reference_draws(policy, seed):
    judged.append((policy, seed))
    return 1.0 if policy == worlds.SMOLLM2 else -1.0

  monkeypatch.setattr(chat_cells, "_study", lambda policy: policy)
  monkeypatch.setattr(chat_cells.arms, "reference_draws", reference_draws)
  monkeypatch.setattr(
    chat_cells,
    "_measures",
    lambda sign: {"reward": [sign * x for x in (1.0, 2.0, 3.0)], "kl": [0.0] * 3},
  )
  return home, judged


def test_world_of_a_chat_model_has_tables_of_its_own(chat, capsys):
  results, judged = chat
  command = ["reproduce", "glad_chat", "--world"]
  assert cli.main([*command, worlds.SMOLLM2]) == 0
  assert cli.main([*command, worlds.SMOLLM2]) == 0
  assert judged == [(worlds.SMOLLM2, 0)]
  found = pages.read(results / "glad_chat")
  assert (found["world"], found["verdict"]) == (worlds.CHAT_MODEL, "agrees")
  assert found["command"] == "xpo reproduce glad_chat --world smollm2"
  assert found["predictions"][0]["mean"] == 2
  page = (results / "glad_chat" / pages.MARKDOWN).read_text()
  assert "Mean [95 %] over 3 held-out prompts and 1 seed." in page
  assert cli.main(["reproduce", "glad_chat"]) == 2
  assert "no table 'glad_chat'" in capsys.readouterr().err


def test_another_chat_model_is_every_arms_and_has_results_of_its_own(chat):
  results, judged = chat
  assert cli.main(["reproduce", "glad_chat", "--world", "models/other"]) == 0
  assert judged == [("models/other", 0)]
  own = results.parents[1] / "runs" / "results" / "other" / "glad_chat"
  assert pages.read(own)["verdict"] == "contrary"
  assert not (results / "glad_chat").exists()


def test_cells_of_any_code_are_taken_where_that_is_asked_for(chat):
  results, judged = chat
  command = ["reproduce", "glad_chat", "--world", worlds.SMOLLM2]
  assert cli.main(command) == 0
  path = results / "glad_chat" / cells.FILE
  (line,) = cells.read(path)
  cells.write(path, [line | {"digest": "of older code", "commit": "older"}])
  assert cli.main([*command, "--any-code"]) == 0
  assert len(judged) == 1
  assert pages.read(results / "glad_chat")["commits"] == ["older"]
  assert cli.main(command) == 0
  assert len(judged) == 2


def test_file_that_cells_read_is_asked_for_before_any_runs(home, ran):
  plans = reproduce.plan(["lee_first", "lee_second"], home)
  one = plans["lee_second"]
  first, *others = one.table.arms
  arms = (first._replace(files={"pairs.jsonl": "of the hub"}), *others)
  plans["lee_second"] = one._replace(table=dataclasses.replace(one.table, arms=arms))
  with pytest.raises(ValueError, match=r"lee_second: no such file 'pairs.jsonl'.*hub"):
    reproduce.rebuild(plans, home)
  count, _ = ran
  assert not count


@pytest.mark.parametrize("name", ["RLAIF (Google)", "2309.00267"])
def test_table_is_found_by_its_paper(home, name):
  assert {"lee_first", "lee_second"} <= find_tables.named([name]).keys()


def test_unknown_table_suggests_the_nearest(home):
  with pytest.raises(ValueError, match="did you mean 'lee_first'"):
    find_tables.named(["lee_frist"])
