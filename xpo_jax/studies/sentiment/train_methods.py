"""The controlled-sentiment study of the DPO paper, sized for a laptop.

A small language model learns a corpus, samples pairs of continuations that are
labelled by Bradley-Terry on a known reward, and every method is trained on the same
pairs from the same start, over a range of strengths and seeds. Policies are compared
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
from xpo_jax.models import config, hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.ops.token_stats import REF_LOGP
from xpo_jax.studies import vectorised_runs
from xpo_jax.studies.sentiment import labelled_pairs, online
from xpo_jax.studies.sentiment.settings import (
  Arm,
  Judge,
  Result,
  Study,
  Trained,
  learning_rate_hparam,
)
from xpo_jax.train import references
from xpo_jax.types import Layout, Params

Say = Callable[[str], None]


class Beginning(NamedTuple):
  """What a study starts from: texts, architecture, weights before fine-tuning."""

  study: Study
  corpus: labelled_pairs.Corpus
  model: transformer.Model
  params: Params


def prepare(study: Study) -> Beginning:
  """Reads everything the study needs, and refuses what it cannot use.

  Raises:
    BadRecords: a text that cannot be used.
    ValueError: no such source or checkpoint, or too few prompts to judge on.
  """
  held = None if study.policy is None else hf_checkpoint.load(study.policy)
  corpus = labelled_pairs.corpus(study, held and held.tokenizer)
  check_prompts(study, corpus)
  if held is not None:
    model = transformer.model(held.config)
    return Beginning(study, corpus, model, {"lm": held.params["lm"]})
  model = transformer.model(_config(study, len(corpus.tokenizer)))
  params = {"lm": jax.jit(model.init)(jax.random.key(study.seed))}
  return Beginning(study, corpus, model, params)


def check_prompts(study: Study, corpus: labelled_pairs.Corpus) -> None:
  """Refuses a split with fewer prompts than policies are judged on.

  Raises:
    ValueError: too few.
  """
  prompts = len(corpus.prompts(study.split))
  if prompts < study.prompts:
    raise ValueError(
      f"Study.prompts is {study.prompts}, the {study.split} split of {corpus.name} "
      f"has {prompts} distinct prompts; take fewer prompts or more texts"
    )


def run(beginning: Beginning, run_dir: Path, say: Say = print) -> Result:
  """Runs the whole study.

  Args:
    beginning: of `prepare`.
    run_dir: online runs are kept in it.
    say: takes a line of progress.

  Raises:
    FloatingPointError: a run diverged.
  """
  study, corpus, model, start = beginning
  clock = _Clock(say)
  clock.start(f"supervised fine-tuning, {study.sft_steps} steps")
  sft_params = fine_tune(study, corpus, model, start, say)
  nll_P = _nll(model, sft_params, corpus, study)
  judged = Judged(study, corpus, model, sft_params)
  # Online runs take turns with the host: in a thread, they fill what others leave idle.
  with futures.ThreadPoolExecutor(1) as beside:
    going = [
      beside.submit(online.train, arm, beginning, sft_params, judged, run_dir)
      for arm in study.online
    ]
    clock.start("samples of the SFT policy, for best-of-n and the ceiling")
    sft, pool_PS = judged.draws(sft_params, seed=study.seed), judged.pool(sft_params)
    clock.start(f"{study.pairs} pairs for each of {len(study.seeds)} seeds")
    lab = Lab(study, corpus, model, sft_params, judged)
    trained: list[Trained] = []
    for arm in study.arms:
      clock.start(f"{arm.label}: {len(arm.strengths) * len(study.seeds)} runs")
      trained += lab.train(arm, arm.label, "true")
    dpo = Arm("DPO", ObjectiveConfig("dpo"), (study.checked,))
    for kind in ("flipped", "random"):
      clock.start(f"DPO on {kind} labels: {len(study.seeds)} runs")
      trained += lab.train(dpo, kind, kind)
    clock.start(f"reward models: {len(study.seeds)} runs")
    judges = lab.judges()
    clock.start("the rest of the online runs, begun beside the others")
    trained += [one for done in going for one in done.result()]
  counts = {
    "texts": sum(map(len, corpus.demonstrations.values())),
    "dropped rows": dict(Counter(row.problem for row in corpus.dropped)),
    "prompts by split": {
      name: len({r.prompt for r in rows})
      for name, rows in corpus.demonstrations.items()
    },
    "vocabulary": len(corpus.tokenizer),
    "parameters": sum(x.size for x in jax.tree.leaves(sft_params)),
    "identical samples left out": {s: p.identical for s, p in lab.pairs.items()},
    "tied pairs": {
      s: float(np.mean(p.reward_P2[:, 0] == p.reward_P2[:, 1]))
      for s, p in lab.pairs.items()
    },
  }
  return Result(
    study,
    corpus.name,
    counts,
    nll_P,
    sft,
    pool_PS,
    trained,
    judges,
    clock.stop(),
  )


class _Clock:
  """Says what begins, and keeps how long it took."""

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


def _config(study: Study, vocab: int) -> config.Config:
  return config.Config(
    vocab=vocab,
    width=study.width,
    layers=study.layers,
    heads=4,
    kv_heads=4,
    head_dim=study.width // 4,
    mlp_width=3 * study.width,
    positions=1024,
    tied=True,
    remat=False,  # the activations of a row are a few kilobytes
  )


# The peak is a hyperparameter of every run.
_OPTIMIZER = optim.Optimizer(warmup_steps=10, floor=0.1)


def fine_tune(study: Study, corpus, model, start: Params, say: Say) -> Params:
  """The SFT policy that every run starts from."""
  examples = corpus.examples("train", study.longest)
  plan = functools.partial(
    pack.plan, examples, pack.PackSizes(study.sft_rows, row_length=study.row_length)
  )
  epochs = -(-study.sft_steps // len(plan())) + 1
  data = vectorised_runs.stack(
    plan(seed=study.seed, epochs=epochs, steps=study.sft_steps)
  )
  train = vectorised_runs.Sweep(ObjectiveConfig("sft"), model, start, _OPTIMIZER)
  (done,) = train(
    [vectorised_runs.Run(data, learning_rate_hparam(study.sft_rate), study.seed)]
  )
  first, last = done.curve["loss"][0], done.curve["loss"][-20:].mean()
  say(f"          {first:.2f} -> {last:.2f} nats a token")
  return done.params


def _nll(model, params, corpus, study) -> np.ndarray:
  """Nats a token of each held-out text's completion."""
  examples = corpus.examples(study.split, study.longest)[: 4 * study.prompts]
  logp_B = sequence_logps.score_pairs(model, params, params, examples)["logp_BK"][:, 0]
  return -logp_B / np.array([len(e.completions[0]) for e in examples])


class Judged:
  """How every policy is sampled and rewarded, on the same prompts."""

  def __init__(self, study: Study, corpus, model, ref: Params):
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._prompts = corpus.prompts(study.split)[: study.prompts]

  def draws(
    self, params: Params, seed: int, rewarded: bool = True
  ) -> measure_policy.Draws:
    setup = measure_policy.EvalSetup(
      self._model,
      self._ref,
      self._prompts,
      self._corpus.tokenizer,
      GenerationConfig(self._study.longest, self._study.samples),
      synthetic_reviews.true_reward if rewarded else None,
      batch=self._study.prompts,
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
      longest=self._study.longest,
      key=jax.random.fold_in(jax.random.key(self._study.seed), 2),
    )
    return synthetic_reviews.true_reward(texts).reshape(
      self._study.prompts, self._study.pool
    )


class Lab:
  """Trains arms on the same pairs; a layout's batches are laid out once, and an
  objective has one sweep for all of its runs."""

  def __init__(self, study: Study, corpus, model, ref: Params, judged: Judged):
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._judged = judged
    self.pairs = {seed: self._draw(seed, "train", study.pairs) for seed in study.seeds}
    self._data: dict[tuple[Layout, str], dict[int, pack.Batch]] = {}
    self.sweeps: dict[tuple, vectorised_runs.Sweep] = {}

  def _draw(self, seed: int, split: str, count: int) -> labelled_pairs.Pairs:
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
      longest=self._study.longest,
      key=jax.random.key(int(rng.integers(2**31))),
    )

  def train(self, arm: Arm, label: str, kind: str) -> list[Trained]:
    """An arm's runs over strengths and seeds, on labels of one kind."""
    settings = [(seed, x) for seed in self._study.seeds for x in arm.strengths]
    hparams = [arm.hparams(strength) for _, strength in settings]
    began = time.perf_counter()
    seeds = [seed for seed, _ in settings]
    outcomes = self.sweep(arm.objective)(self.runs(arm.objective, seeds, hparams, kind))
    seconds = (time.perf_counter() - began) / len(settings)
    out = []
    for (seed, strength), found in zip(settings, outcomes, strict=True):
      draws = self._judged.draws(found.params, seed)
      out.append(Trained(label, strength, seed, draws, found.curve, seconds))
    return out

  def judges(self) -> list[Judge]:
    """A reward model on each seed's pairs."""
    seeds = self._study.seeds
    hparams = [learning_rate_hparam(self._study.judge_rate)] * len(seeds)
    use = ObjectiveConfig("bradley_terry")
    found = self.sweep(use)(self.runs(use, seeds, hparams))
    return [
      self._judge(seed, one.params) for seed, one in zip(seeds, found, strict=True)
    ]

  def _judge(self, seed: int, params: Params) -> Judge:
    """A reward model on a pair a held-out prompt, under labels no run has seen."""
    study = self._study
    pairs = self._draw(seed, study.split, len(self._corpus.prompts(study.split)))
    labels = labelled_pairs.label(pairs, study.temperature, (seed, 1))
    found = sequence_logps.score_pairs(self._model, params, self._ref, labels)[
      "value_BK"
    ]
    reward_P2 = pairs.in_order(labels)
    untied_P = reward_P2[:, 0] != reward_P2[:, 1]
    agrees_P = (found[:, 0] > found[:, 1])[untied_P]
    right_P = agrees_P == (reward_P2[:, 0] > reward_P2[:, 1])[untied_P]
    optimum = synthetic_reviews.expected_accuracy(*reward_P2.T, study.temperature)
    return Judge(seed, right_P.astype(float), agrees_P.astype(float), optimum)

  def runs(
    self, use: ObjectiveConfig, seeds, hparams, kind: str = "true"
  ) -> list[vectorised_runs.Run]:
    """Runs of an objective: each one's seed, its hyperparameters, and the seed's
    pairs."""
    data = self._laid_out(use.build().layout, kind)
    return [
      vectorised_runs.Run(data[seed], at, seed)
      for seed, at in zip(seeds, hparams, strict=True)
    ]

  def sweep(self, use: ObjectiveConfig) -> vectorised_runs.Sweep:
    """What trains an objective's runs; made once."""
    own = (use.name, *use.hparams.items())
    if own not in self.sweeps:
      self.sweeps[own] = vectorised_runs.Sweep(use, self._model, self._ref, _OPTIMIZER)
    return self.sweeps[own]

  def forget(self, use: ObjectiveConfig) -> None:
    """Lets go of an objective's programs, where many objectives follow each other."""
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
