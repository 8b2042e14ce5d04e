"""Parts of a random array are the same numbers as those cut from the whole."""

import jax
import numpy as np
import pytest

from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.sharding import draws, place
from xpo_jax.sharding import mesh as meshes

KEY = jax.random.key(5)
SHAPE = (3, 5, 11)


def test_a_part_equals_the_cut_of_the_whole():
  whole = jax.random.normal(KEY, (400,))
  part = draws.normal(KEY, 7, SHAPE)
  np.testing.assert_array_equal(part.reshape(-1), whole[7 : 7 + part.size])


@pytest.mark.parametrize("within", [2**32, 16], ids=["one word", "leading axes"])
@pytest.mark.parametrize("first", [0, 2**32 - 50, 5 * 2**32 - 3])
def test_counters_are_numbers_of_two_words(first, within, monkeypatch):
  monkeypatch.setattr(draws, "_WITHIN", within)
  high, low = (np.asarray(x).astype(np.uint64) for x in draws._counters(first, SHAPE))
  expected = first + np.arange(np.prod(SHAPE)).reshape(SHAPE)
  np.testing.assert_array_equal(high * 2**32 + low, expected)


def test_another_generator_is_refused():
  with pytest.raises(ValueError, match="threefry2x32; the key is of rbg"):
    draws.normal(jax.random.key(0, impl="rbg"), 0, (2,))


def test_a_large_model_on_a_mesh_has_the_numbers_of_one_array(monkeypatch):
  config = Config(
    vocab=16, width=8, layers=2, heads=2, kv_heads=2, head_dim=4, mlp_width=8, tied=True
  )
  model = transformer.model(config)
  whole = model.init(KEY)
  monkeypatch.setattr(transformer, "_DRAWN_AT_ONCE", 0)
  mesh = meshes.make_mesh(1, 4, 2)
  split = place.init_params(mesh, model.init, model.logical_axes(), KEY)
  kernel = split["blocks"]["up"]["kernel"]
  assert {x.data.shape for x in kernel.addressable_shards} == {(2, 2, 4)}
  jax.tree.map(np.testing.assert_array_equal, split, whole)
