"""Arguments of a recipe are of their annotated types."""

import dataclasses

import pytest

from xpo_jax.studies import find_recipe

RECIPE = """
import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Settings:
  given: dict


def experiment(
  packed: bool = True,
  rate: float = 1.0,
  steps: int | None = 3,
  sizes: tuple[int, ...] = (),
  kind: Literal["a", "b"] = "a",
  path: str | None = None,
  either: int | str = 0,
  plain="x",
  table: dict = {},
):
  return Settings(dict(locals()))
"""


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(RECIPE)
  return str(path)


@pytest.mark.parametrize(
  ("word", "value"),
  [
    ("packed=false", False),
    ("packed=True", True),
    ("rate=1e-4", 1e-4),
    ("steps=7", 7),
    ("steps=None", None),
    ("sizes=1,2", (1, 2)),
    ("kind=b", "b"),
    ("path=None", None),
    ("path=7", "7"),
    ("either=7", 7),
    ("either=seven", "seven"),
    ("plain=7", "7"),
  ],
)
def test_argument_has_its_annotated_type(recipe, word, value):
  settings = find_recipe.load(recipe, [word]).experiment
  got = dataclasses.asdict(settings)["given"][word.partition("=")[0]]
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
  ("word", "match"),
  [
    ("packed=1", "packed is '1'; it must be true or false"),
    ("rate=fast", "rate is 'fast'; it must be a number"),
    ("steps=1.5", "steps is '1.5'; it must be a whole number"),
    ("sizes=1,x", "sizes is '1,x'; it must be a whole number"),
    ("kind=c", "kind is 'c'; allowed: a, b"),
    ("table={}", "cannot be given from a shell"),
  ],
)
def test_text_of_another_type_is_refused(recipe, word, match):
  with pytest.raises(ValueError, match=f"mine.py: .*{match}"):
    find_recipe.load(recipe, [word])
