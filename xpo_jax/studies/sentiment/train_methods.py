"""The controlled-sentiment study of the DPO paper, sized for a CPU.

A small language model is fine-tuned on a corpus and samples pairs of completions,
which Bradley-Terry on a known reward labels. Every method is trained on the same pairs
from the same start, over a range of strengths and seeds. Policies are compared
on held-out prompts at equal KL to the start (Rafailov et al. 2023, arXiv:2305.18290,
Sec. 6.1).
"""

import functools
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from xpo_jax.config import optim
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data import collate, pack, synthetic_reviews
from xpo_jax.evaluation import measure_policy, sequence_logps
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.ops.token_stats import REF_LOGP
from xpo_jax.studies import task as tasks
from xpo_jax.studies import vectorised_runs
from xpo_jax.studies.sentiment import labelled_pairs, online
from xpo_jax.studies.sentiment.settings import (
  Arm,
  RewardModelAccuracy,
  SentimentResult,
  SentimentStudy,
  TrainedPolicy,
  learning_rate_hparam,
)
from xpo_jax.train import references
from xpo_jax.types import Layout, Params

Say = Callable[[str], None]


class SentimentData(NamedTuple):
  """What a study starts from.

  Attributes:
    study: its settings.
    corpus: its texts.
    model: the architecture.
    params: weights before fine-tuning.
  """

  study: SentimentStudy
  corpus: labelled_pairs.Corpus
  model: transformer.Model
  params: Params


def prepare(study: SentimentStudy) -> SentimentData:
  """Reads everything the study needs, and refuses what it cannot use.

  Raises:
    BadRecords: a text that cannot be used.
    ValueError: no such source or checkpoint, or too few prompts to judge on.
  """
  policy = None if study.policy is None else hf_checkpoint.load(study.policy)
  corpus = labelled_pairs.corpus(study, policy and policy.tokenizer)
  check_prompts(study, corpus)
  if policy is not None:
    model = transformer.model(policy.config)
    return SentimentData(study, corpus, model, {"lm": policy.params["lm"]})
  config = tasks.small_model(len(corpus.tokenizer), study.width, study.layers)
  model = transformer.model(config)
  params = {"lm": jax.jit(model.init)(jax.random.key(study.seed))}
  return SentimentData(study, corpus, model, params)


def check_prompts(study: SentimentStudy, corpus: labelled_pairs.Corpus) -> None:
  """Refuses a split with fewer prompts than policies are judged on.

  Raises:
    ValueError: too few.
  """
  prompts = len(corpus.prompts(study.split))
  if prompts < study.eval_prompts:
    raise ValueError(
      f"SentimentStudy.eval_prompts is {study.eval_prompts}, the {study.split} split "
      f"of {corpus.name} has {prompts} distinct prompts; take fewer prompts or more "
      "texts"
    )


def run(data: SentimentData, run_dir: Path, say: Say = print) -> SentimentResult:
  """Runs the whole study.

  Args:
    data: of `prepare`.
    run_dir: online runs are kept in it.
    say: takes a line of progress.

  Raises:
    FloatingPointError: a run diverged.
  """
  study, corpus, model, start = data
  clock = _Clock(say)
  clock.start(f"supervised fine-tuning, {study.sft_steps} steps")
  sft_params = fine_tune(study, corpus, model, start, say)
  nll_P = _nll(model, sft_params, corpus, study)
  evaluator = PolicyEvaluator(study, corpus, model, sft_params)
  # Online runs wait for the host between updates: in a thread of their own they use
  # devices that the other runs leave idle.
  with futures.ThreadPoolExecutor(1) as executor:
    online_runs = [
      executor.submit(online.train, arm, data, sft_params, evaluator, run_dir)
      for arm in study.online
    ]
    clock.start("samples of the SFT policy, for best of n and the optimal policy")
    sft = evaluator.draws(sft_params, seed=study.seed)
    pool_PS = evaluator.pool(sft_params)
    clock.start(f"{study.num_pairs} pairs for each of {len(study.seeds)} seeds")
    trainer = PairTrainer(study, corpus, model, sft_params, evaluator)
    trained: list[TrainedPolicy] = []
    for arm in study.arms:
      clock.start(f"{arm.label}: {len(arm.strengths) * len(study.seeds)} runs")
      trained += trainer.train(arm, arm.label, "true")
    for kind in ("flipped", "random"):
      clock.start(f"DPO on {kind} labels: {len(study.seeds)} runs")
      trained += trainer.train(study.control, kind, kind)
    clock.start(f"reward models: {len(study.seeds)} runs")
    reward_models = trainer.reward_models()
    clock.start("the rest of the online runs")
    trained += [policy for future in online_runs for policy in future.result()]
  counts = {
    "texts": sum(map(len, corpus.demonstrations.values())),
    "dropped rows": dict(Counter(row.problem for row in corpus.dropped)),
    "prompts by split": {
      name: len({r.prompt for r in rows})
      for name, rows in corpus.demonstrations.items()
    },
    "vocabulary": len(corpus.tokenizer),
    "parameters": sum(x.size for x in jax.tree.leaves(sft_params)),
    "identical samples left out": {s: p.identical for s, p in trainer.pairs.items()},
    "tied pairs": {
      s: float(np.mean(p.reward_P2[:, 0] == p.reward_P2[:, 1]))
      for s, p in trainer.pairs.items()
    },
  }
  return SentimentResult(
    study,
    corpus.name,
    counts,
    nll_P,
    sft,
    pool_PS,
    trained,
    reward_models,
    clock.stop(),
  )


class _Clock:
  """Reports each stage as it starts, and records its seconds."""

  def __init__(self, say: Say):
    self._say, self._began, self._stage = say, time.perf_counter(), None
    self._zero = self._began
    self._seconds: dict[str, float] = {}

  def start(self, stage: str) -> None:
    self.stop()
    self._stage, self._began = stage, time.perf_counter()
    self._say(f"[{self._began - self._zero:5.0f} s] {stage}")

  def stop(self) -> dict[str, float]:
    if self._stage is not None:
      self._seconds[self._stage] = time.perf_counter() - self._began
    return self._seconds


# The peak is a hyperparameter of every run.
_OPTIMIZER = optim.Optimizer(warmup_steps=10, floor=0.1)


def fine_tune(study: SentimentStudy, corpus, model, start: Params, say: Say) -> Params:
  """The SFT policy that every run starts from."""
  examples = corpus.examples("train", study.max_completion_tokens)
  plan = functools.partial(
    pack.plan, examples, pack.PackSizes(study.sft_rows, row_length=study.row_length)
  )
  epochs = -(-study.sft_steps // len(plan())) + 1
  data = vectorised_runs.stack(
    plan(seed=study.seed, epochs=epochs, steps=study.sft_steps)
  )
  train = vectorised_runs.Sweep(ObjectiveConfig("sft"), model, start, _OPTIMIZER)
  (done,) = train(
    [
      vectorised_runs.VectorisedRun(
        data, learning_rate_hparam(study.sft_learning_rate), study.seed
      )
    ]
  )
  first, last = done.curve["loss"][0], done.curve["loss"][-20:].mean()
  say(f"          {first:.2f} -> {last:.2f} nats a token")
  return done.params


def _nll(model, params, corpus, study) -> np.ndarray:
  """Nats a token of each held-out text's completion."""
  examples = corpus.examples(study.split, study.max_completion_tokens)[
    : 4 * study.eval_prompts
  ]
  logp_B = sequence_logps.score_pairs(model, params, params, examples)["logp_BK"][:, 0]
  return -logp_B / np.array([len(e.completions[0]) for e in examples])


class PolicyEvaluator:
  """Samples and rewards every policy on the same prompts."""

  def __init__(self, study: SentimentStudy, corpus, model, ref: Params):
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._prompts = corpus.prompts(study.split)[: study.eval_prompts]

  def draws(
    self, params: Params, seed: int, rewarded: bool = True
  ) -> measure_policy.Draws:
    setup = measure_policy.EvalSetup(
      self._model,
      self._ref,
      self._prompts,
      self._corpus.tokenizer,
      GenerationConfig(self._study.max_completion_tokens, self._study.eval_samples),
      synthetic_reviews.true_reward if rewarded else None,
      batch=self._study.eval_prompts,
    )
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return measure_policy.draw(setup, params, key)

  def pool(self, params: Params) -> np.ndarray:
    """Rewards of many samples a prompt."""
    _, texts = labelled_pairs.complete(
      self._model,
      params,
      self._corpus.tokenizer,
      self._prompts,
      completions=self._study.pool,
      max_completion_tokens=self._study.max_completion_tokens,
      key=jax.random.fold_in(jax.random.key(self._study.seed), 2),
    )
    return synthetic_reviews.true_reward(texts).reshape(
      self._study.eval_prompts, self._study.pool
    )


class PairTrainer:
  """Trains arms on the same pairs.

  Batches of a layout are made once; all runs of an objective are one sweep.
  """

  def __init__(
    self,
    study: SentimentStudy,
    corpus: labelled_pairs.Corpus,
    model: transformer.Model,
    ref: Params,
    evaluator: PolicyEvaluator,
  ):
    """Samples the pairs of every seed.

    Args:
      study: the settings.
      corpus: the texts.
      model: the architecture.
      ref: where every run starts, and its reference.
      evaluator: judges the policies.
    """
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._evaluator = evaluator
    self.pairs = {
      seed: self._draw(seed, "train", study.num_pairs) for seed in study.seeds
    }
    self._data: dict[tuple[Layout, str], dict[int, pack.Batch]] = {}
    self.sweeps: dict[tuple, vectorised_runs.Sweep] = {}

  def _draw(self, seed: int, split: str, count: int) -> labelled_pairs.SampledPairs:
    """Pairs over the prompts of a split; each is used as often as any other, +-1."""
    prompts = self._corpus.prompts(split)
    rng = np.random.default_rng((self._study.seed, seed, len(split)))
    turns = -(-count // len(prompts))
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(turns)])
    return labelled_pairs.draw_pairs(
      self._model,
      self._ref,
      self._corpus.tokenizer,
      [prompts[i] for i in order[:count]],
      max_completion_tokens=self._study.max_completion_tokens,
      key=jax.random.key(int(rng.integers(2**31))),
    )

  def train(self, arm: Arm, label: str, kind: str) -> list[TrainedPolicy]:
    """An arm's runs over strengths and seeds, on labels of one kind."""
    settings = [(seed, x) for seed in self._study.seeds for x in arm.strengths]
    hparams = [arm.hparams(strength) for _, strength in settings]
    began = time.perf_counter()
    seeds = [seed for seed, _ in settings]
    outcomes = self.sweep(arm.objective)(self.runs(arm.objective, seeds, hparams, kind))
    seconds = (time.perf_counter() - began) / len(settings)
    policies = []
    for (seed, strength), outcome in zip(settings, outcomes, strict=True):
      draws = self._evaluator.draws(outcome.params, seed)
      policies.append(
        TrainedPolicy(label, strength, seed, draws, outcome.curve, seconds)
      )
    return policies

  def reward_models(self) -> list[RewardModelAccuracy]:
    """Trains a reward model on each seed's pairs, and measures its accuracy."""
    seeds = self._study.seeds
    hparams = [learning_rate_hparam(self._study.reward_learning_rate)] * len(seeds)
    use = ObjectiveConfig("bradley_terry")
    outcomes = self.sweep(use)(self.runs(use, seeds, hparams))
    return [
      self._accuracy(seed, outcome.params)
      for seed, outcome in zip(seeds, outcomes, strict=True)
    ]

  def _accuracy(self, seed: int, params: Params) -> RewardModelAccuracy:
    """Of a reward model on one pair for each held-out prompt, with labels of their
    own."""
    study = self._study
    pairs = self._draw(seed, study.split, len(self._corpus.prompts(study.split)))
    labels = labelled_pairs.label(pairs, study.temperature, (seed, 1))
    scores = sequence_logps.score_pairs(self._model, params, self._ref, labels)
    value_P2 = scores["reward_head_BK"]
    reward_P2 = pairs.in_order(labels)
    untied_P = reward_P2[:, 0] != reward_P2[:, 1]
    agrees_P = (value_P2[:, 0] > value_P2[:, 1])[untied_P]
    correct_P = agrees_P == (reward_P2[:, 0] > reward_P2[:, 1])[untied_P]
    optimum = synthetic_reviews.expected_accuracy(*reward_P2.T, study.temperature)
    correct_P, agrees_P = correct_P.astype(float), agrees_P.astype(float)
    return RewardModelAccuracy(seed, correct_P, agrees_P, optimum)

  def runs(
    self, use: ObjectiveConfig, seeds, hparams, kind: str = "true"
  ) -> list[vectorised_runs.VectorisedRun]:
    """Runs of an objective with their seeds, hyperparameters and the seed's pairs."""
    data = self._laid_out(use.build().layout, kind)
    return [
      vectorised_runs.VectorisedRun(data[seed], at, seed)
      for seed, at in zip(seeds, hparams, strict=True)
    ]

  def sweep(self, use: ObjectiveConfig) -> vectorised_runs.Sweep:
    """The sweep that trains an objective's runs; made once."""
    own = (use.name, *use.hparams.items())
    if own not in self.sweeps:
      self.sweeps[own] = vectorised_runs.Sweep(use, self._model, self._ref, _OPTIMIZER)
    return self.sweeps[own]

  def forget(self, use: ObjectiveConfig) -> None:
    """Frees an objective's compiled programs."""
    self.sweeps.pop((use.name, *use.hparams.items()), None)

  def _laid_out(self, layout: Layout, kind: str) -> dict[int, pack.Batch]:
    """One epoch of each seed: equal shapes and numbers of steps, reference scored."""
    if (layout, kind) in self._data:
      return self._data[layout, kind]
    study = self._study
    examples = {}
    for seed, pairs in self.pairs.items():
      labelled = labelled_pairs.label(pairs, study.temperature, (seed, 0), kind)
      examples[seed] = collate.to_layout(labelled, layout, seed)
    # Where pairs take more tokens in this layout (KTO: twice), a step has more rows.
    rows = max(
      round(study.rows * _tokens(examples[seed]) / _tokens(labelled)), study.rows
    )
    sizes = pack.PackSizes(rows, row_length=study.row_length)
    first = [pack.plan(e, sizes, seed=seed) for seed, e in examples.items()]
    steps = min(map(len, first))
    shapes = zip(*(p.shape for p in first), strict=True)
    sizes = pack.PackSizes(
      rows, row_length=study.row_length, shape=pack.Shape(*map(max, shapes))
    )
    scorer = references.scorer(self._model, (REF_LOGP,))
    laid_out = {}
    for seed, e in examples.items():
      data = vectorised_runs.stack(pack.plan(e, sizes, seed=seed, steps=steps))
      # Steps and microbatches are one axis to the scorer.
      flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
      ref = jax.device_get(scorer(self._ref, flat))
      laid_out[seed] = data.replace(ref={n: x[:, None] for n, x in ref.items()})
    self._data[layout, kind] = laid_out
    return laid_out


def _tokens(examples) -> int:
  return sum(len(e.prompt) + sum(map(len, e.completions)) for e in examples)
