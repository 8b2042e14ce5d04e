"""The wheel holds the package, its recipes and its texts; it needs no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import wheels, xla_flags

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """A folder with the installed package alone."""
  home = tmp_path_factory.mktemp("installed")
  wheels.pip("install", str(wheel), "--target", str(home), cwd=home)
  return home


def _python(installed, cwd, *args):
  environment = dict(os.environ) | {
    "PYTHONPATH": str(installed),
    "XLA_FLAGS": xla_flags.COMPILE_FAST,  # one device, as on a laptop
  }
  done = subprocess.run(
    [sys.executable, *args],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def _sources():
  """What the wheel must hold, as paths in it, of what the checkout holds."""
  for folder, place in (("xpo_jax", "xpo_jax"), ("experiments", "xpo_jax/experiments")):
    for path in (ROOT / folder).rglob("*"):
      name = path.relative_to(ROOT / folder)
      if path.is_file() and "__pycache__" not in name.parts and path.name[0] != ".":
        yield f"{place}/{name.as_posix()}"


def test_wheel_holds_every_file_of_the_package_and_the_experiments(wheel):
  packed = set(zipfile.ZipFile(wheel).namelist())
  code = {name for name in packed if ".dist-info/" not in name}
  assert code == set(_sources())
  assert "xpo_jax/py.typed" in packed


def test_installed_package_is_found_before_the_checkout(installed, tmp_path):
  code = "import xpo_jax; print(xpo_jax.__file__)"
  where = _python(installed, tmp_path, "-c", code).strip()
  assert Path(where).is_relative_to(installed)


def test_list_names_every_recipe_and_table(installed, tmp_path):
  shown = _python(installed, tmp_path, "-m", "xpo_jax.cli", "list")
  own = shown.split("\nrecipes\n")[1].split("\nclaims of papers")[0]
  groups = own.split("\ntables\n")
  for group, folder in zip(groups, ("experiments", "experiments/tables"), strict=True):
    listed = {line.split()[0] for line in group.splitlines() if line.strip()}
    files = (ROOT / folder).glob("[!_]*.py")
    named = {path.stem for path in files if "\ndef experiment(" in path.read_text()}
    assert listed == named


def test_recipe_of_the_wheel_is_checked(installed, tmp_path):
  shown = _python(installed, tmp_path, "-m", "xpo_jax", "check", "ppo")
  assert "nothing wrong found" in shown


def test_recipes_are_modules(installed, tmp_path):
  code = "from xpo_jax.experiments.tables import munos2023_exploitability as t; t.run"
  _python(installed, tmp_path, "-c", code)
