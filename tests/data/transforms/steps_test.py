"""Steps lose the EOS that ends a completion, and nothing else."""

import types

import numpy as np

from xpo_jax.data.tokenise import Example
from xpo_jax.data.transforms import steps
from xpo_jax.types import Layout

TOKENIZER = types.SimpleNamespace(eos_token_id=2)


def _open(*completions, masks=None):
  example = Example(
    uid="x",
    prompt=np.array([5]),
    completions=tuple(map(np.array, completions)),
    layout=Layout.PAIR,
    masks=masks,
    token_fields={"reward": tuple(1.0 * np.array(x) for x in completions)},
  )
  (opened,) = steps.open_ended([example], TOKENIZER)
  return opened


def test_eos_is_taken_off_and_other_ends_stay():
  opened = _open([7, 8, 2], [9, 2, 6])  # the second was cut at the limit
  assert [x.tolist() for x in opened.completions] == [[7, 8], [9, 2, 6]]
  assert [x.tolist() for x in opened.token_fields["reward"]] == [[7, 8], [9, 2, 6]]
  assert opened.masks is None


def test_completion_of_eos_alone_keeps_it():
  masks = (np.array([False, True]), np.array([True, True]))
  opened = _open([7, 2], [8, 2], masks=masks)  # only EOS of the first carries loss
  assert [x.tolist() for x in opened.completions] == [[7, 2], [8]]
  assert [x.tolist() for x in opened.masks] == [[False, True], [True]]
  assert _open([2], [2]).completions[0].tolist() == [2]
