"""Samples from a policy and scores texts with it, also in a run (`Loop.evaluator`)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.data import records, tokenise
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import tokenised_texts
from xpo_jax.feedback.tokenised_texts import TextBatch
from xpo_jax.models import generate as generation
from xpo_jax.models import score, transformer
from xpo_jax.models.generate import Batching
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.transformer import Model
from xpo_jax.ops import token_stats
from xpo_jax.train.state import Policy
from xpo_jax.types import Array, Params


def sample(
  policy: Policy,
  prompts: Sequence[records.Text | records.Prompt],
  config: GenerationConfig,
  *,
  seed: int = 0,
  batch: int | None = None,
) -> list[list[str]]:
  """Draws completions of each prompt, a text or messages for the chat template.

  Special tokens that messages spell are text; in a plain text the template says.

  Args:
    policy: what is sampled from.
    prompts: texts, tuples of `records.Turn`, or records with one of them.
    config: how completions are drawn.
    seed: of the draws.
    batch: prompts decoded at once; None: all.

  Raises:
    ValueError: messages, and no chat template; a prompt without tokens.
  """
  of_messages = dataclasses.replace(policy.template, control_tokens="text")
  ids = []
  for number, prompt in enumerate(prompts):
    row = prompt
    if not isinstance(row, records.Prompt):
      row = records.Prompt(str(number), row)
    template = policy.template if isinstance(row.prompt, str) else of_messages
    ids += tokenise.tokenise_prompts([row], policy.tokenizer, template)
  drawn = generation.generate(
    policy.model,
    policy.params["lm"],
    ids,
    tokenizer=policy.tokenizer,
    config=config,
    key=jax.random.key(seed),
    batching=Batching(batch),
  )
  return [list(texts) for texts in drawn.texts_BK]


def logps(
  policy: Policy,
  prompts: Sequence[str],
  completions: Sequence[str],
  *,
  batch: int = 16,
) -> np.ndarray:
  """Computes log p(completion | prompt) in nats, EOS included, float32 [N].

  Args:
    policy: what scores them.
    prompts: N texts.
    completions: N texts, tokenised together with their prompts, as in training.
    batch: texts per forward pass.

  Raises:
    ValueError: prompts and completions of unequal number.
  """
  examples = tokenised_texts.to_examples(
    prompts, completions, policy.tokenizer, template=policy.template, limits=Limits()
  )
  run = functools.partial(_logps, policy.model, policy.params["lm"])
  return tokenised_texts.map_batches(examples, batch, run)


@functools.partial(jax.jit, static_argnums=0)
def _logps(model: Model, params: Params, rows: TextBatch) -> Array:
  # The last token of a text is no input.
  inputs = transformer.Rows.plain(rows.tokens_RL[:, :-1], rows.mask_RL[:, 1:])
  stats = score.token_statistics(
    {"policy": model.hidden(params, inputs)},
    {"policy": model.head(params)},
    rows.tokens_RL[:, 1:],
    (token_stats.LOGP,),
    softcaps={"policy": model.softcap},
  )
  return jnp.where(rows.response_RL[:, 1:], stats["logp_BKT"], 0).sum(1)
