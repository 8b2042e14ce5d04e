"""The guides of docs/: commands and Python blocks run, what is not run is parsed.

Guides are walked in the order of docs/index.rst, in one directory, as a reader would; a
block with a caption is first written to a file of that name. Two comments mark a block:
`.. not run: reason`, and `.. refused: message` where a command ends with that message.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import xla_flags
from xpo_jax import cli, objectives
from xpo_jax.config import command_line
from xpo_jax.report import diagnostics
from xpo_jax.studies import find_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = re.findall(
  r"^   guides/(\w+)$", (DOCS / "index.rst").read_text("utf-8"), flags=re.M
)
_BLOCK = re.compile(
  r"(?:^\.\. (?P<mark>not run|refused): (?P<word>.*)\n\n)?"
  r"^\.\. code-block:: (?P<kind>\w+)\n"
  r"(?:   :caption: (?P<file>\S+)\n)?\n"
  r"(?P<text>(?:   .*\n|\n)+)",
  flags=re.M,
)


class Block(NamedTuple):
  """A block of a guide.

  Attributes:
    guide: its name.
    kind: bash, python or json.
    file: its caption, or None.
    mark: "not run", "refused" or None.
    word: what the mark says.
    text: without the indent.
  """

  guide: str
  kind: str
  file: str | None
  mark: str | None
  word: str | None
  text: str

  @property
  def commands(self) -> list[str]:
    """The lines of a shell block, comments left out."""
    if self.kind != "bash":
      return []
    text = re.sub(r" *\\\n *", " ", self.text)
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _source(guide: str) -> str:
  return (DOCS / "guides" / f"{guide}.rst").read_text(encoding="utf-8")


def _blocks(guide: str) -> list[Block]:
  found = []
  for match in _BLOCK.finditer(_source(guide)):
    lines = match["text"].strip("\n").splitlines()
    text = "\n".join(line.removeprefix("   ") for line in lines) + "\n"
    fields = (match["kind"], match["file"], match["mark"], match["word"])
    found.append(Block(guide, *fields, text))
  return found


BLOCKS = [block for guide in GUIDES for block in _blocks(guide)]
RUN = [block for block in BLOCKS if block.mark != "not run"]
NOT_RUN = [block for block in BLOCKS if block.mark == "not run"]

# One interpreter for all guides: imports and compiles are paid once. The working
# directory is on its path, as `PYTHONPATH=.` puts it there.
_DRIVER = """
import contextlib, io, json, os, shlex, subprocess, sys, traceback
from pathlib import Path
from xpo_jax import cli

def run(command):
  words = shlex.split(command)
  settings = {}
  while "=" in words[0]:
    name, _, value = words.pop(0).partition("=")
    settings[name] = value
  if "XLA_FLAGS" in settings:
    settings["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + " " + settings["XLA_FLAGS"]
  assert words[0] == "xpo", command
  if set(settings) - {"PYTHONPATH"}:
    done = subprocess.run(
      [sys.executable, "-m", "xpo_jax", *words[1:]], env=os.environ | settings,
      capture_output=True, text=True)
    print(done.stdout)
    print(done.stderr, file=sys.stderr)
    return done.returncode
  return cli.main(words[1:])

results = []
for kind, file, text, commands in json.load(sys.stdin):
  if file:
    Path(file).write_text(text, encoding="utf-8")
  for part in commands if kind == "bash" else [text] * (kind == "python"):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        code = 0
        if kind == "bash":
          code = run(part)
        else:
          exec(compile(part, file or "guide", "exec"), {"__name__": "guide"})
      except (Exception, SystemExit):
        code = 1
        traceback.print_exc()
    results.append([part, code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
  """The directory of the walk, and of every command and Python block that was run its
  text, exit code, output and errors."""
  home = tmp_path_factory.mktemp("guides")
  environment = dict(os.environ)
  environment["XLA_FLAGS"] = xla_flags.COMPILE_FAST  # one device, as on a laptop
  steps = [[b.kind, b.file, b.text, b.commands] for b in RUN]
  done = subprocess.run(
    [sys.executable, "-c", _DRIVER],
    input=json.dumps(steps),
    cwd=home,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return home, json.loads(done.stdout.splitlines()[-1])


def _parts(block: Block) -> list[str]:
  return block.commands if block.kind == "bash" else [block.text]


_PARTS = [(b, part) for b in RUN if b.kind != "json" for part in _parts(b)]


@pytest.mark.parametrize(
  "number",
  range(len(_PARTS)),
  ids=[f"{b.guide}: {p.splitlines()[0][:60]}" for b, p in _PARTS],
)
def test_block_of_a_guide_runs(walked, number):
  block, part = _PARTS[number]
  text, code, _, errors = walked[1][number]
  assert text == part
  if block.mark == "refused":
    assert code == 2 and block.word in errors and "Traceback" not in errors
  else:
    assert code == 0, errors[-3000:]


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
    flags = next((n for n, w in enumerate(words) if w.startswith("--")), len(words))
    with contextlib.chdir(home):
      recipe = find_recipe.load(words[2], words[3:flags])
      command_line.from_args(recipe.experiment, words[flags:])
  elif words[:2] == ["xpo", "evaluate"]:
    assert cli._parser().parse_args(words[1:]).command == "evaluate"
  else:
    assert command in ("xpo compare-objectives",)


def _tables(guide: str) -> list[list[str]]:
  """The first column of each table of a guide, its head left out."""
  table = r"^(=+) [= ]+\n.+\n=+ [= ]+\n((?:[^=].*\n)+)=+ [= ]+\n"
  return [
    [cell for line in body.splitlines() if (cell := line[: len(rule)].strip())]
    for rule, body in re.findall(table, _source(guide), flags=re.M)
  ]


def test_walk_leaves_what_the_guides_say(walked):
  home, _ = walked
  (listed,) = _tables("first_run")
  assert len(listed) == 9
  for name in listed:
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
  named = re.findall(r"xpo (?:train|check) (\w+)(?![\w./])", _source(guide))
  assert set(named) - {"NAME"} <= {*find_recipe.names(), *objectives.NAMES}


_NAMED = re.compile(r"^ *- ``([\w.]+)``", flags=re.M)


def _walks() -> list[str]:
  return re.split(r"\n-{5,}\n", _source("code_walk"))[1:]


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
  for name in set(_DOTTED.findall(_source(guide))) - _FILES:
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
