"""A decode step on a mesh: each device holds the cache of its rows and its heads."""

import re

import jax
import numpy as np
import pytest

from xpo_jax.models import sample, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import place

B, K, P, T, N, h = 8, 3, 5, 7, 2, 6
CONFIG = Config(
  vocab=64, width=16, layers=N, heads=4, kv_heads=2, head_dim=h, mlp_width=24
)
GENERATION = GenerationConfig(T, completions=K, stop_ids=())


@pytest.mark.parametrize(
  ("sizes", "rows", "heads"),
  [((2, 2, 2), 2, 1), ((8, 1, 1), 1, 2), ((1, 2, 4), 4, 2)],
  ids=["rows and heads", "rows", "heads that are not divisible"],
)
def test_no_device_holds_the_cache_of_another(sizes, rows, heads):
  mesh = meshes.make_mesh(*sizes)
  model = transformer.model(CONFIG)
  params = jax.jit(model.init)(jax.random.key(0))
  prompts = sample.PromptBatch(np.ones((B, P), np.int32), np.full(B, P), np.arange(B))
  decoder, prompts = sample.prepare(
    model, params, prompts, config=GENERATION, mesh=mesh
  )
  prompts = place.place_rows(mesh, prompts)
  text = (
    sample.decode.lower(
      decoder,
      prompts.prompt_BP,
      prompts.length_B,
      jax.random.key(0),
      prompts.row_B,
      completions=K,
      max_completion_tokens=T,
    )
    .compile()
    .as_text()
  )
  own = set(re.findall(rf"f32\[{N},(\d+),{K},(\d+),{T},{h}\]", text))
  assert own == {(str(rows), str(heads))}
  read = re.findall(rf"f32\[{N},(\d+),(\d+),{P},{h}\]", text)
  assert max((int(b), int(g)) for b, g in read) == (rows, heads)
