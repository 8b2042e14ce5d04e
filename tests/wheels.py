"""Builds the wheel of this checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def pip(*args: str, cwd: Path) -> None:
  """Runs pip on what is on this machine, requirements left out.

  Raises:
    RuntimeError: pip failed; with what it printed.
  """
  done = subprocess.run(
    [sys.executable, "-m", "pip", *args, "--quiet", "--no-deps", "--no-index"],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
  )
  if done.returncode:
    raise RuntimeError(done.stdout + done.stderr)


def build(folder: Path) -> Path:
  """The wheel, built in an empty folder from a copy of the checkout.

  A build writes beside its sources, and packs what is there.

  Raises:
    RuntimeError: the wheel cannot be built.
  """
  source = folder / "source"
  for name in ("xpo_jax", "experiments"):
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in ("setup.py", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  out = folder / "wheel"
  options = ("--use-pep517", "--no-build-isolation", "--wheel-dir", str(out))
  pip("wheel", ".", *options, cwd=source)
  (path,) = out.glob("*.whl")
  return path
