"""Mutated rows: each is kept or a named bad row, and no text is lost without a word."""

import numpy as np
import pytest

from experiments.bench import fuzz_rows


@pytest.mark.parametrize("kind", fuzz_rows.KINDS)
def test_mutated_rows_are_kept_or_named(kind):
  table = fuzz_rows.run(kind, 120, np.random.default_rng(0))
  assert table.read == table.kept + table.dropped == 120
  assert table.dropped and table.kept
  assert not table.unnamed and not table.lost


def test_a_text_that_a_template_leaves_out_is_found(monkeypatch):
  deaf = "{% for m in messages %}{{ m.role }}: {% endfor %}"
  monkeypatch.setattr(fuzz_rows, "TEMPLATES", {"deaf": deaf})
  assert fuzz_rows.run("conversation", 20, np.random.default_rng(0)).lost
