"""The guides of docs/ as their blocks, and a walk that runs them as a reader would.

A block with a caption is first written to a file of that name. Two comments mark a
block: `.. not run: reason`, and `.. refused: message` where a command ends with that
message. Imports nothing of the package: a walk runs in any interpreter that has it.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent.parent / "docs"
NAMES = re.findall(
  r"^   guides/(\w+)$", (DOCS / "index.rst").read_text("utf-8"), flags=re.M
)
_BLOCK = re.compile(
  r"(?:^\.\. (?P<mark>not run|refused): (?P<word>.*)\n\n)?"
  r"^\.\. code-block:: (?P<kind>\w+)\n"
  r"(?:   :caption: (?P<file>\S+)\n)?\n"
  r"(?P<text>(?:   .*\n|\n)+)",
  flags=re.M,
)

_ROW = re.compile(
  r"^   \* - \*\*(?P<name>.*)\*\*\n\n(?P<becomes>(?: {7}.*\n)+)"
  r"     - \.\. code-block:: json\n\n"
  r"(?P<row>(?: {10}.*\n)+)",
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

  @property
  def parts(self) -> list[str]:
    """What is run of it: each command, or a Python block as a whole."""
    return [self.text] if self.kind == "python" else self.commands


def source(guide: str) -> str:
  """The text of a guide."""
  return (DOCS / "guides" / f"{guide}.rst").read_text(encoding="utf-8")


def blocks(guide: str) -> list[Block]:
  """The blocks of a guide, in their order."""
  found = []
  for match in _BLOCK.finditer(source(guide)):
    lines = match["text"].strip("\n").splitlines()
    text = "\n".join(line.removeprefix("   ") for line in lines) + "\n"
    fields = (match["kind"], match["file"], match["mark"], match["word"])
    found.append(Block(guide, *fields, text))
  return found


class DataRow(NamedTuple):
  """A row of data in the table of a guide.

  Attributes:
    row: the JSON value.
    becomes: what the guide says is made of it.
  """

  row: dict[str, Any]
  becomes: str


def data_rows(guide: str) -> dict[str, DataRow]:
  """The rows of data in the table of a guide, by the name of their schema."""
  return {
    match["name"]: DataRow(json.loads(match["row"]), " ".join(match["becomes"].split()))
    for match in _ROW.finditer(source(guide))
  }


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
for kind, file, text, parts in json.load(sys.stdin):
  if file:
    Path(file).write_text(text, encoding="utf-8")
  for part in parts:
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
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


class Done(NamedTuple):
  """A command or Python block that was run.

  Attributes:
    block: it, or the block that the command stands in.
    text: the command, or the block's text.
    code: its exit code.
    output: what it printed.
    errors: what it printed to standard error, a traceback included.
  """

  block: Block
  text: str
  code: int
  output: str
  errors: str

  @property
  def as_marked(self) -> bool:
    """Whether it succeeded, or was refused with the message that its block names."""
    if self.block.mark != "refused":
      return self.code == 0
    refused = self.code == 2 and "Traceback" not in self.errors
    return refused and self.block.word in self.errors


def walk(
  python: str,
  blocks: Sequence[Block],
  home: Path,
  environment: Mapping[str, str],
  timeout: float = 600,
) -> list[Done]:
  """Runs blocks in one directory, but for those marked as not run.

  Args:
    python: the interpreter.
    blocks: of one guide or several, in the order of docs/index.rst.
    home: the directory.
    environment: the variables, `XLA_FLAGS` among them.
    timeout: for all blocks, in seconds.

  Returns:
    For every command and Python block what came of it.

  Raises:
    RuntimeError: the interpreter ended before the last block.
    subprocess.TimeoutExpired: it took longer.
  """
  run = [block for block in blocks if block.mark != "not run"]
  steps = [[block.kind, block.file, block.text, block.parts] for block in run]
  done = subprocess.run(
    [python, "-c", _DRIVER],
    input=json.dumps(steps),
    cwd=home,
    env=environment,
    capture_output=True,
    text=True,
    timeout=timeout,
  )
  if done.returncode:
    raise RuntimeError(f"the walk ended with {done.returncode}: {done.stderr[-3000:]}")
  results = json.loads(done.stdout.splitlines()[-1])
  parts = [(block, part) for block in run for part in block.parts]
  return [Done(*p, *result) for p, result in zip(parts, results, strict=True)]
