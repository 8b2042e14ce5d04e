"""Installs the wheel on every Python beside its lowest and its newest requirements.

Command: make installs
  or, for one of them: python -m tests.installs --pythons 3.13 --resolutions lowest
Needs the package index, the interpreters, and 2 GB of disk for the one environment that
stands at a time. Not a part of the suite: an installation takes a minute of CPU time.

Each installation is tried as a reader would: the command's help, the check of a recipe,
and every guide of docs/, which train from scratch, on pairs, with adapters and on
samples. The lowest versions are those that `setup.py` states, of what it names itself,
as wheels: a version that has none for a Python is passed over.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from zipfile import Path as ZipPath

from tests import guides, wheels, xla_flags

PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
SHOWN = ("jax", "flax", "transformers", "numpy")
_TIMEOUT = 3600  # seconds of a command, on a host that does much else
_SOURCE_ONLY = "promise"  # of tensorflow-datasets; published without a wheel
_COMMANDS = (("demo", "--help"), ("check", "ppo"))
_IMPORT_IS_LIGHT = """
import sys
import xpo_jax.objectives
assert "transformers" not in sys.modules, "objectives import transformers"
"""


def requirements(wheel: Path) -> list[str]:
  """What the wheel asks for, extras left out."""
  (info,) = (p for p in ZipPath(wheel).iterdir() if p.name.endswith(".dist-info"))
  asked = metadata.PathDistribution(info).requires or []
  return [line for line in asked if "extra ==" not in line]


def _environment() -> dict[str, str]:
  """The variables of this process, but for those that would import the checkout."""
  return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*words: str | Path, cwd: Path) -> str:
  """What a command prints.

  Raises:
    RuntimeError: it failed; with the end of what it printed.
  """
  done = subprocess.run(
    [str(word) for word in words],
    cwd=cwd,
    env=_environment(),
    capture_output=True,
    text=True,
    timeout=_TIMEOUT,
  )
  if done.returncode:
    command = " ".join(str(word) for word in words)
    raise RuntimeError(f"{command}\n{(done.stdout + done.stderr)[-3000:]}")
  return done.stdout


def install(uv: Path, python: str, resolution: str, wheel: Path, home: Path) -> Path:
  """Makes an environment in a folder.

  Returns:
    Its interpreter.

  Raises:
    RuntimeError: there is no such interpreter, or the requirements do not install.
  """
  environment = home / "environment"
  _run(uv, "venv", "--no-python-downloads", "--python", python, environment, cwd=home)
  interpreter = environment / "bin" / "python"
  wheels_only = ("--only-binary", ":all:", "--no-binary", _SOURCE_ONLY)
  how = ("--resolution", RESOLUTIONS[resolution], *wheels_only)
  what = (wheel, *requirements(wheel))
  _run(uv, "pip", "install", "--python", interpreter, *how, *what, cwd=home)
  return interpreter


def versions(interpreter: Path, home: Path) -> dict[str, str]:
  """Installed packages and their versions."""
  code = "from importlib import metadata\n"
  code += "for d in metadata.distributions(): print(d.name.lower(), d.version)"
  printed = _run(interpreter, "-c", code, cwd=home)
  return dict(line.split() for line in printed.splitlines())


def attempt(interpreter: Path, jaxlib: str, home: Path) -> None:
  """Uses an installation, of a version of jaxlib.

  Raises:
    RuntimeError: what failed first, with its error.
  """
  for command in _COMMANDS:
    _run(interpreter.with_name("xpo"), *command, cwd=home)
  _run(interpreter, "-c", _IMPORT_IS_LIGHT, cwd=home)
  blocks = [block for name in guides.NAMES for block in guides.blocks(name)]
  environment = _environment() | {"XLA_FLAGS": xla_flags.compile_fast(jaxlib)}
  for done in guides.walk(str(interpreter), blocks, home, environment, _TIMEOUT):
    if not done.as_marked:
      raise RuntimeError(f"{done.text}\n{done.errors[-3000:]}")


def main() -> int:
  """Tries every installation asked for and prints a table of them."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
  parser.add_argument("--pythons", nargs="+", default=PYTHONS)
  parser.add_argument(
    "--resolutions", nargs="+", default=list(RESOLUTIONS), choices=list(RESOLUTIONS)
  )
  given = parser.parse_args()
  failures = []
  with tempfile.TemporaryDirectory() as folder:
    wheel = wheels.build(Path(folder))
    tools = Path(folder) / "tools"
    venv.create(tools, with_pip=True)
    _run(tools / "bin" / "pip", "install", "--quiet", "uv", cwd=tools)
    print("python", "requirements", *SHOWN, "result", sep="\t")
    for python in given.pythons:
      for resolution in given.resolutions:
        with tempfile.TemporaryDirectory() as place:
          home = Path(place)
          found = dict.fromkeys(SHOWN, "-")
          try:
            interpreter = install(tools / "bin" / "uv", python, resolution, wheel, home)
            found = versions(interpreter, home)
            attempt(interpreter, found["jaxlib"], home)
            result = "works"
          except (RuntimeError, subprocess.TimeoutExpired) as error:
            result = "fails"
            failures.append(f"{python}, {resolution}: {error}")
        row = (python, resolution, *(found[name] for name in SHOWN), result)
        print(*row, sep="\t", flush=True)
  print(*failures, sep="\n\n", file=sys.stderr)
  return len(failures)


if __name__ == "__main__":
  sys.exit(main())
