"""Writes the reference's pages: one per objective, one per module of mathematics."""

from pathlib import Path

from xpo_jax import objectives, survey

MODULES = {
  "Records and evaluation": ("types", "scored", "masked", "token_stats"),
  "Mathematics": (
    "links",
    "discovered",
    "divergences",
    "token_mdp",
    "returns",
    "policy_loss",
    "groups",
    "ranking",
    "games",
    "repetition",
  ),
  "Rules around a loss": (
    "selection",
    "pairing",
    "labels",
    "controllers",
    "models.merge",
  ),
  "To try things on": ("toy", "bandit", "explain", "terminal"),
  "The survey": ("directions", "survey"),
}


def write(folder: Path) -> None:
  """Fills `folder` with pages; what stood there from another run is removed."""
  folder.mkdir(exist_ok=True)
  for stale in folder.glob("*.rst"):
    stale.unlink()
  for name in objectives.NAMES:
    _write(folder / f"{name}.rst", _objective(name))
  listed = "\n".join(f"   {name}" for name in objectives.NAMES)
  _write(
    folder / "objectives.rst",
    _title("Objectives") + f".. toctree::\n   :maxdepth: 1\n\n{listed}\n",
  )
  parts = sorted(set(objectives.HOME) - set(objectives.NAMES))
  blocks = "".join(f".. autofunction:: xpo_jax.objectives.{one}\n\n" for one in parts)
  _write(folder / "building_blocks.rst", _title("Building blocks") + blocks)
  for title, modules in MODULES.items():
    body = "".join(
      f"{_title(module, '-')}.. automodule:: xpo_jax.{module}\n   :members:\n\n"
      for module in modules
    )
    _write(folder / f"{title.lower().replace(' ', '_')}.rst", _title(title) + body)


def _objective(name: str) -> str:
  places = "".join(
    f"::\n\n{_indent(survey.place(paper))}\n\n" for paper in survey.papers_of(name)
  )
  return (
    f"{_title(name)}.. autofunction:: xpo_jax.objectives.{name}\n\n"
    f"{_title('In the survey', '-')}{places}"
  )


def _title(text: str, mark: str = "=") -> str:
  return f"{text}\n{mark * len(text)}\n\n"


def _indent(text: str) -> str:
  return "\n".join(f"   {line}" for line in text.splitlines())


def _write(path: Path, text: str) -> None:
  path.write_text(text, encoding="utf-8")
