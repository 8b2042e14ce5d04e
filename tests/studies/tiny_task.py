"""The smallest task that recipes run on."""

from xpo_jax.studies.task import Task

TINY = Task(
  num_texts=300,
  vocab=300,
  width=16,
  layers=1,
  max_completion_tokens=6,
  row_length=40,
  sft_steps=2,
  sft_rows=4,
  num_prompts=8,
  rows=2,
  eval_prompts=4,
  eval_samples=2,
  seeds=(0,),
)
