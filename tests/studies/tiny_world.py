"""The smallest world that recipes of several stages run in."""

from xpo_jax.studies.multistage.staged_world import World

TINY = World(
  texts=240,
  vocab=400,
  width=8,
  layers=1,
  longest=6,
  row_length=40,
  sft_steps=2,
  sft_rows=2,
  asked=8,
  rows=2,
  prompts=3,
  samples=2,
  seeds=(0,),
)
