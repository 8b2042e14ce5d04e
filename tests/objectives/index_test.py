"""The index of objectives, hyperparameters and documentation pages."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from xpo_jax import objectives, scored
from xpo_jax.testing import toy
from xpo_jax.types import Layout

HERE = Path(objectives.__file__).parent


def test_index_lists_every_paper_file():
  shared = {"__init__", "_hparams", "_rewards", "_mixture", "_pointwise"}
  shared |= {"_entropy_bonus"}
  files = {path.stem for path in HERE.glob("*.py")} - shared
  assert files == {f"_{name}" for name in objectives.NAMES}


@pytest.mark.parametrize("path", sorted(HERE.glob("_*.py")), ids=lambda p: p.stem)
def test_file_imports_only_ops_types_and_other_objectives(path):
  tree = ast.parse(path.read_text(encoding="utf-8"))
  imported = [
    f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
    for node in ast.walk(tree)
    if isinstance(node, (ast.Import, ast.ImportFrom))
    for alias in node.names
  ]
  allowed = ("xpo_jax.ops.", "xpo_jax.types.", "xpo_jax.objectives.")
  own = [name for name in imported if name.startswith("xpo_jax")]
  assert not [name for name in own if not name.startswith(allowed)]
  assert not [name for name in imported if name.startswith(("optax", "transformers"))]


@pytest.mark.parametrize("name", objectives.NAMES)
def test_page_cites_its_paper_and_leaves_the_state_of_numbers_to_the_table(name):
  page = objectives.docstring(name)
  assert re.search(r"arXiv:\d{4}\.\d{4,5}", page)
  assert not re.search(r"\bnot\s+checked\b", page)


def test_reading_the_index_imports_no_jax():
  code = (
    "import sys; from xpo_jax import objectives as o; "
    "pages = [o.summary(n) + o.arxiv(n) for n in o.NAMES]; "
    "assert len(pages) == len(o.NAMES) > 0; assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", objectives.NAMES)
def test_objective_carries_its_name_hparams_and_page(name):
  o = objectives.build(name)
  parameters = inspect.signature(objectives.get(name)).parameters
  assert o.name == name
  assert o.hparams == {hparam: p.default for hparam, p in parameters.items()}
  assert objectives.build(o.name, o.hparams)._replace(loss=0, prepare=0, init=0) == (
    o._replace(loss=0, prepare=0, init=0)
  )
  page = objectives.docstring(name)
  assert page == inspect.getdoc(objectives.get(name))
  sections = ["Paper:", "Departs from the paper:", "Reduction:", "Returns:", "Example:"]
  assert all(section in page for section in [*sections, "Metrics:", "Terms:"])
  assert o.layout.name in page
  assert all(f"{hparam}: " in page for hparam in parameters)


@pytest.mark.parametrize("name", objectives.NAMES)
def test_returns_section_lists_what_the_objective_reads(name):
  o = objectives.build(name)
  text = " ".join(objectives.docstring(name).partition("Returns:")[2].split())
  reads = text.partition("Terms:")[0]
  assert reads.startswith(f"Objective; layout {o.layout.name}")
  for stat in o.stats:
    constant = stat.field.removesuffix("_BKT").upper()
    assert constant in reads or "contrast_tokens(k)" in reads
  assert all(column in reads for column in o.columns)
  assert ("reads tokens" in reads) == o.reads_tokens
  assert ("state" in reads) == bool(jax.tree.leaves(o.init()))


@pytest.mark.parametrize("name", [*objectives.NAMES, "mixture", "entropy_bonus"])
def test_example_in_the_docstring_runs(name):
  result = doctest.testmod(importlib.import_module(f"xpo_jax.objectives._{name}"))
  assert result.attempted
  assert not result.failed


def test_unknown_objective_is_refused_with_the_likely_one():
  with pytest.raises(ValueError, match=r"no objective 'dp0' \(did you mean 'dpo'\?\)"):
    objectives.get("dp0")
  with pytest.raises(ValueError, match=r"known: sft, "):
    objectives.build("quite something else")
  with pytest.raises(AttributeError):
    _ = objectives.dp0


def test_unknown_hparam_is_refused_with_the_likely_one():
  with pytest.raises(
    ValueError, match=r"dpo has no hyperparameter 'bata' \(did you mean 'beta'"
  ):
    objectives.build("dpo", {"bata": 0.1})


def _numeric_hparams():
  for name in objectives.NAMES:
    for hparam, value in objectives.build(name).hparams.items():
      if isinstance(value, float):
        yield name, hparam


@pytest.mark.parametrize(("name", "hparam"), _numeric_hparams())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1x"])
def test_hparam_that_is_no_number_is_refused(name, hparam, value):
  with pytest.raises(ValueError, match=rf"{name}: {hparam}=.*must be a finite number"):
    objectives.build(name, {hparam: value})


@pytest.mark.parametrize(
  "name", [n for n in objectives.NAMES if "beta" in objectives.build(n).hparams]
)
def test_beta_is_positive(name):
  for beta in (0.0, -0.1):
    with pytest.raises(ValueError, match=rf"{name}: beta=.* > 0 \(usual: beta="):
      objectives.build(name, {"beta": beta})


@pytest.mark.parametrize(
  ("name", "hparams"),
  [
    ("dpo", {"label_smoothing": 0.5}),
    ("dpo", {"label_smoothing": -0.1}),
    ("simpo", {"gamma": -1.0}),
    ("simpo", {"label_smoothing": 0.7}),
    ("orpo", {"weight": -0.1}),
    ("kto", {"desirable_weight": -1.0}),
    ("kto", {"undesirable_weight": -1.0}),
    ("beta_dpo", {"keep": 0.0}),
    ("beta_dpo", {"keep": 1.1}),
    ("beta_dpo", {"momentum": 1.0}),
    ("beta_dpo", {"alpha": float("inf")}),
    ("bradley_terry", {"margin": -0.1}),
    ("bradley_terry", {"centring": -0.1}),
  ],
)
def test_hparam_out_of_range_is_refused(name, hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=rf"{name}: {hparam}=.*must be a finite number"):
    objectives.build(name, hparams)


@pytest.mark.parametrize("name", objectives.NAMES)
def test_wrong_layout_is_refused(name):
  o = objectives.build(name)
  if o.layout is Layout.DEMO or o.layout.completions is None:
    return  # reads column 0 of any; any K will do
  with pytest.raises(
    ValueError,
    match=rf"{name} needs layout {o.layout.name} \(K={o.layout.completions}\)",
  ):
    scored.evaluate(o, toy.scored(K=3), o.init())
