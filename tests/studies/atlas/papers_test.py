"""Every table of a paper has a committed result, and it is what its cells say."""

import importlib.util
import json
from pathlib import Path

import pytest

from xpo_jax import cli
from xpo_jax.studies.atlas import cells, find_tables, pages, worlds

RESULTS = Path(__file__).parents[3] / "experiments" / "results"
NAMES = list(find_tables.files())
# Of a chat model's tables those that were run.
ON_CHAT = find_tables.files(worlds.CHAT_MODEL)
FILES = find_tables.files() | {
  name: path for name, path in ON_CHAT.items() if (RESULTS / name).exists()
}
# Seconds from scratch, should their code have changed since.
SMALL = ("lee2023_position", "munos2023_last_iterate", "richemond2024_fixed_point")


@pytest.mark.parametrize("name", FILES)
def test_committed_pages_are_what_the_committed_cells_say(name):
  table = find_tables.load(FILES[name])
  lines = cells.read(RESULTS / name / cells.FILE)
  rendered = pages.files(name, table, lines)
  committed = {
    path.name: path.read_text(encoding="utf-8") for path in (RESULTS / name).iterdir()
  }
  del committed[cells.FILE]
  assert committed.keys() == rendered.keys()
  for file, text in rendered.items():
    assert committed[file] == text, f"{file} is stale: xpo reproduce {name} --render"


def test_committed_folders_are_those_of_tables():
  assert {path.parent.name for path in RESULTS.glob(f"*/{pages.FINDING}")} == set(FILES)


@pytest.fixture(scope="module")
def plants():
  path = RESULTS.parent / "bench" / "plant_failures.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_table_has_a_planted_failure(plants):
  assert plants.FAILURES.keys() == set(NAMES)


def test_page_of_planted_failures_is_what_the_summary_says(plants):
  rows = json.loads(plants.SUMMARY.read_text(encoding="utf-8"))
  assert plants.SUMMARY.with_suffix(".md").read_text(encoding="utf-8") == plants.page(
    rows
  )


def test_check_holds_on_small_tables(capsys):
  assert cli.main(["reproduce", *SMALL, "--check"]) == 0
  assert "every committed verdict holds" in capsys.readouterr().out


def test_tables_on_a_chat_model_name_ten_methods_and_no_table_of_another_world():
  assert not ON_CHAT.keys() & set(NAMES)
  tables = [find_tables.load(path) for path in ON_CHAT.values()]
  assert {table.method for table in tables} >= {
    *("dpo", "ipo", "simpo", "kto", "orpo", "r_dpo", "tdpo2"),
    *("rloo", "grpo", "online_dpo"),
  }
  for table in tables:
    assert table.world == worlds.CHAT_MODEL
    assert {arm.settings["policy"] for arm in table.arms} == {worlds.SMOLLM2}
