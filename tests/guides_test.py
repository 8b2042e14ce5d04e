"""The guides of docs/: commands and Python blocks run, what is not run is parsed.

Guides are walked in the order of docs/index.rst, in one directory, as a reader would.
"""

import contextlib
import importlib
import os
import pkgutil
import re
import shlex
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import guides, xla_flags
from xpo_jax import cli, objectives
from xpo_jax.config import command_line
from xpo_jax.report import diagnostics
from xpo_jax.studies import find_recipe

ROOT = Path(__file__).parent.parent
GUIDES = guides.NAMES
BLOCKS = [block for guide in GUIDES for block in guides.blocks(guide)]
RUN = [block for block in BLOCKS if block.mark != "not run"]
NOT_RUN = [block for block in BLOCKS if block.mark == "not run"]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
  """The directory of the walk, and what came of every command and Python block."""
  home = tmp_path_factory.mktemp("guides")
  # One device, as on a laptop.
  environment = dict(os.environ) | {"XLA_FLAGS": xla_flags.COMPILE_FAST}
  return home, guides.walk(sys.executable, BLOCKS, home, environment)


_PARTS = [(block, part) for block in RUN for part in block.parts]


@pytest.mark.parametrize(
  "number",
  range(len(_PARTS)),
  ids=[f"{b.guide}: {p.splitlines()[0][:60]}" for b, p in _PARTS],
)
def test_block_of_a_guide_runs(walked, number):
  done = walked[1][number]
  assert done.as_marked, (done.code, done.errors[-3000:])


@pytest.mark.parametrize(
  "command", [command for block in NOT_RUN for command in block.commands]
)
def test_command_that_is_not_run_could_be(walked, command):
  home, _ = walked
  words = shlex.split(command)
  if words[0] == "make":
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(rf"^{words[1]}:", makefile, flags=re.M)
  elif words[0] == "pip":
    extra = re.search(r"\[([\w-]+)\]", words[-1])[1]
    assert f'    "{extra}": [' in (ROOT / "setup.py").read_text("utf-8")
  elif words[:2] == ["xpo", "train"]:
    args, words = cli._parser().parse_known_args(words[1:])
    flags = next((n for n, w in enumerate(words) if w.startswith("--")), len(words))
    with contextlib.chdir(home):
      recipe = find_recipe.load(args.recipe, words[:flags])
      command_line.from_args(recipe.experiment, words[flags:])
  elif words[:2] == ["xpo", "check"]:
    args, words = cli._parser().parse_known_args(words[1:])
    find_recipe.load(args.recipe, words)
  elif words[:2] == ["xpo", "evaluate"]:
    assert cli._parser().parse_args(words[1:]).command == "evaluate"
  else:
    assert command in ("xpo compare-objectives",)


def _tables(guide: str) -> list[list[str]]:
  """The first column of each table of a guide, its head left out."""
  table = r"^(=+) [= ]+\n.+\n=+ [= ]+\n((?:[^=].*\n)+)=+ [= ]+\n"
  return [
    [cell for line in body.splitlines() if (cell := line[: len(rule)].strip())]
    for rule, body in re.findall(table, guides.source(guide), flags=re.M)
  ]


def test_walk_leaves_what_the_guides_say(walked):
  home, _ = walked
  (listed,) = _tables("first_run")
  assert len(listed) == 10
  for name in set(listed) - {"``adapter/``"}:  # in place of the policy
    assert (home / "runs" / "first" / name.strip("`")).exists(), name
  assert (home / "runs" / "adapters" / "adapter").is_dir()
  assert (home / "runs" / "rlhf" / "stages").is_dir()
  report = (home / "runs" / "first" / "report.md").read_text("utf-8")
  rollouts = (home / "runs" / "rloo" / "report.md").read_text("utf-8")
  sections, diagnoses = _tables("reading_a_report")
  for section in sections:
    assert f"## {section}\n" in report or f"## {section}\n" in rollouts, section
  source = Path(diagnostics.__file__).read_text("utf-8")
  for name in diagnoses:
    assert f'"{name}"' in source, name


@pytest.mark.parametrize("guide", GUIDES)
def test_recipes_named_in_a_guide_exist(guide):
  named = re.findall(r"xpo (?:train|check) (\w+)(?![\w./])", guides.source(guide))
  assert set(named) - {"NAME"} <= {*find_recipe.names(), *objectives.NAMES}


_NAMED = re.compile(r"^ *- ``([\w.]+)``", flags=re.M)


def _walks() -> list[str]:
  return re.split(r"\n-{5,}\n", guides.source("code_walk"))[1:]


def _module(name: str) -> tuple[str, list[str]]:
  """The module of a name, and the attributes that lead from it to the function."""
  parts = name.split(".")
  for end in range(len(parts) - 1, 0, -1):
    path = ROOT / "xpo_jax" / Path(*parts[:end])
    if path.with_suffix(".py").exists():
      return ".".join(parts[:end]), parts[end:]
  raise AssertionError(f"{name} is in no module")


_PACKAGES = sorted(path.name for path in (ROOT / "xpo_jax").iterdir() if path.is_dir())
_DOTTED = re.compile(rf"``(?:xpo_jax\.)?((?:{'|'.join(_PACKAGES)})\.[\w.]+)``")
_FILES = {"config.yaml", "data.json", "report.html", "report.md"}  # of a run


@pytest.mark.parametrize("guide", GUIDES)
def test_names_of_a_guide_exist(guide):
  for name in set(_DOTTED.findall(guides.source(guide))) - _FILES:
    pkgutil.resolve_name(f"xpo_jax.{name}")


@pytest.mark.parametrize(
  "name", sorted({n for w in _walks() for n in _NAMED.findall(w)})
)
def test_function_of_the_code_walk_exists(name):
  module, attributes = _module(name)
  value = importlib.import_module(f"xpo_jax.{module}")
  for attribute in attributes:
    value = vars(value)[attribute]
  assert callable(value)


@pytest.mark.parametrize("walk", _walks())
def test_code_walk_passes_no_module_twice(walk):
  passed = Counter(_module(name)[0] for name in _NAMED.findall(walk))
  assert passed and max(passed.values()) == 1
