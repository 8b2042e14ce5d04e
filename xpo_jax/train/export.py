"""Exports the trained weights: Hugging Face directory, adapter, reward model."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax.config.experiment import Experiment, Scratch
from xpo_jax.data import records, split, tokenise
from xpo_jax.data.records import Record
from xpo_jax.data.sources import Loaded
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import preference_model, reward_model
from xpo_jax.models import generate, hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.lora import Adapter
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, nf4
from xpo_jax.train import run_directory
from xpo_jax.train.loading import LoadedStart
from xpo_jax.train.state import BASE, TrainState, final_params
from xpo_jax.types import Params

REFERENCE_SAMPLES = 256  # completions that normalise a reward model
_MAX_TOKENS = 128  # of such a completion where the data set no limit
_BATCH = 32  # prompts decoded at once


Write = Callable[[Path], None]
"""`directory ->`: writes weights that are on the host."""
Writer = Callable[[TrainState, Params], Write]
"""`(state, params) -> Write` of the policy of a state; `params` has adapters merged. A
collective call, since it fetches the weights to the host; writing is none."""


def policy_writer(
  adapter: Adapter | None,
  model: Model,
  frozen: Mapping[str, Params],
  tokenizer: Any,
  base_name: str,
) -> Writer:
  """Returns what writes weights and tokenizer; of adapters, them alone.

  Args:
    adapter: of the run.
    model: architecture of the policy.
    frozen: with the adapters' base.
    tokenizer: of the policy.
    base_name: see `base_name`.
  """

  def fetch(now: TrainState, params: Params) -> Write:
    if adapter is None:
      return functools.partial(
        hf_checkpoint.save,
        config=model.config,
        params=distributed.to_host(params),
        tokenizer=tokenizer,
      )
    own = params | {"lm": final_params(now)["lm"]}
    return functools.partial(
      hf_checkpoint.save_adapter,
      config=model.config,
      adapter=adapter,
      params=distributed.to_host(own),
      base=distributed.to_host(frozen[BASE]["lm"]),
      base_name=base_name,
      tokenizer=tokenizer,
    )

  return fetch


def reward_writer(
  experiment: Experiment,
  begin: LoadedStart,
  loaded: Loaded,
  model: Model,
  fetch: Writer,
) -> Writer:
  """Adds to the directory of a reward model reward.json: its prompt template and
  normalisation.

  Rewards are normalised to mean 0 and standard deviation 1 on completions sampled from
  the start, which is a later policy's reference; on the preferred completions of a run
  from scratch, which has no reference. A preference model is not normalised.

  Args:
    experiment: the run.
    begin: config, weights and tokenizer of its start.
    loaded: its records.
    model: architecture of the policy.
    fetch: of the weights.
  """
  # On the host, and only what is sampled from: the run's device memory is its own.
  scratch = isinstance(experiment.start, Scratch)
  params = {} if scratch else jax.device_get(begin.policy)
  start = begin._replace(params=params, adapter=None)

  def fetch_described(now: TrainState, params: Params) -> Write:
    params = distributed.to_host(params)
    write = fetch(now, params)

    def write_described(directory: Path) -> None:
      write(directory)
      _describe(experiment, start, loaded, model, params, directory)

    return write_described

  return fetch_described


def base_name(begin: LoadedStart, run_dir: Path) -> str:
  """The name of what a run's adapters belong to: its start's, or that of a directory
  that the run writes (`base_writer`)."""
  return begin.name or str(run_dir / run_directory.BASE)


def base_writer(
  begin: LoadedStart, model: Model, frozen: Mapping[str, Params]
) -> Callable[[], Write] | None:
  """Returns what fetches and writes the random weights that adapters belong to; None
  where there are no adapters, or their base has a name."""
  if BASE not in frozen or begin.name is not None:
    return None
  tokenizer = begin.tokenizer

  def fetch() -> Write:
    return functools.partial(
      hf_checkpoint.save,
      config=model.config,
      params=nf4.dense(distributed.to_host(frozen[BASE])),
      tokenizer=tokenizer,
    )

  return fetch


def is_reward(experiment: Experiment) -> bool:
  """Whether a run trains only a scalar head on completions, and no policy."""
  stats = experiment.objective.build().stats
  return {role for stat in stats for role in stat.roles} == {"policy.reward"}


def _describe(experiment, begin, loaded, model, params, directory) -> None:
  data = experiment.data
  if data.transform == preference_model.BOTH_ORDERS:
    kind = reward_model.PREFERENCE
    reward_model.write_description(directory, data.template, data.limits, kind=kind)
    return
  prompts, completions = _reference(experiment, begin, loaded)
  head = reward_model.RewardModel(
    model, params, begin.tokenizer, data.template, data.limits
  )
  affine = reward_model.normalise(head, prompts, completions).affine
  reward_model.write_description(directory, data.template, data.limits, affine=affine)


def _trained_on(experiment: Experiment, loaded: Loaded) -> Iterator[Record]:
  """Yields the valid records that are not held out."""
  shares, seed = experiment.evaluation.shares, experiment.data.seed
  for row in loaded.records:
    if split.name_of(split.prompt_text(row), shares, seed) != "train":
      continue
    if records.find_problem(row) is None:
      yield row


def _reference(
  experiment: Experiment, begin: LoadedStart, loaded: Loaded
) -> tuple[list[str], list[records.Text]]:
  """Prompts of the training data with a completion of each to normalise rewards on."""
  number: dict[bytes, int] = {}  # of each different prompt
  for row in _trained_on(experiment, loaded):
    number.setdefault(_digest(row), len(number))
  order = np.random.default_rng(experiment.seed).permutation(len(number))
  order = order[: 2 * REFERENCE_SAMPLES].tolist()
  wanted, last = set(order), {}
  for row in _trained_on(experiment, loaded):  # not held: a source may be large
    if (at := number[_digest(row)]) in wanted:
      last[at] = row
  chosen = [last[at] for at in order]
  data, limits = experiment.data, _truncating(experiment.data.limits)
  # The template may refuse a record that was dropped.
  chosen = tokenise.tokenise_valid_prompts(
    chosen, begin.tokenizer, data.template, limits=limits
  ).records[:REFERENCE_SAMPLES]
  prompts = [records.prompt_string(row) for row in chosen]
  if isinstance(experiment.start, Scratch):
    return prompts, [_preferred(row) for row in chosen]
  return prompts, _completions(experiment, begin, chosen)


def _digest(row: Record) -> bytes:
  text = records.plain_text(row.prompt)
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _completions(
  experiment: Experiment, begin: LoadedStart, rows: Sequence[Record]
) -> list[str]:
  """One completion of each record's prompt, sampled from the start."""
  data, limits = experiment.data, _truncating(experiment.data.limits)
  drawn = generate.generate(
    transformer.model(begin.config),
    begin.params["lm"],
    tokenise.tokenise_prompts(rows, begin.tokenizer, data.template, limits=limits),
    tokenizer=begin.tokenizer,
    config=GenerationConfig(data.limits.completion or _MAX_TOKENS),
    key=jax.random.key(experiment.seed),
    batching=generate.Batching(batch_size=_BATCH),
  )
  return [texts[0] for texts in drawn.texts_BK]


def _truncating(limits: Limits) -> Limits:
  return Limits(limits.prompt, long_prompt="truncate")


def _preferred(row: Record) -> records.Text:
  if isinstance(row, records.Ranked):
    return row.completions[int(np.argmax(row.rewards))]
  return records.completions(row)[0]
