"""The controlled-sentiment study of the DPO paper, sized for a laptop.

A small language model learns a corpus, samples pairs of continuations that are
labelled by Bradley-Terry on a known reward, and every method is trained on the same
pairs from the same start, over a range of strengths and seeds. Policies are compared
on held-out prompts at equal KL to the start (Rafailov et al. 2023, arXiv:2305.18290,
Sec. 6.1).
"""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.data import collate, pack, world
from xpo_jax.models import config, pretrained, transformer
from xpo_jax.recipes import sentiment_data
from xpo_jax.recipes.sentiment_study import Arm, Judge, Result, Study, Trained
from xpo_jax.token_stats import REF_LOGP
from xpo_jax.train import evaluate, optim, references, sequences, state, step
from xpo_jax.train.experiment import Use
from xpo_jax.types import Layout, Params

Say = Callable[[str], None]


class Beginning(NamedTuple):
  """What a study starts from: texts, architecture, weights before fine-tuning."""

  study: Study
  corpus: sentiment_data.Corpus
  model: transformer.Model
  params: Params


def prepare(study: Study) -> Beginning:
  """Reads everything the study needs, and refuses what it cannot use.

  Raises:
    BadRows: a text that cannot be used.
    ValueError: no such source or checkpoint, or too few prompts to judge on.
  """
  held = None if study.policy is None else pretrained.load(study.policy)
  corpus = sentiment_data.corpus(study, held and held.tokenizer)
  prompts = len(corpus.prompts(study.split))
  if prompts < study.prompts:
    raise ValueError(
      f"Study.prompts is {study.prompts}, the {study.split} split of {corpus.name} "
      f"has {prompts} distinct prompts; take fewer prompts or more texts"
    )
  if held is not None:
    model = transformer.model(held.config)
    return Beginning(study, corpus, model, {"lm": held.params["lm"]})
  model = transformer.model(_config(study, len(corpus.tokenizer)))
  params = {"lm": jax.jit(model.init)(jax.random.key(study.seed))}
  return Beginning(study, corpus, model, params)


def run(beginning: Beginning, say: Say = print) -> Result:
  """Runs the whole study.

  Args:
    beginning: of `prepare`.
    say: takes a line of progress.

  Raises:
    FloatingPointError: a run diverged.
  """
  study, corpus, model, start = beginning
  clock = _Clock(say)
  clock.start(f"supervised fine-tuning, {study.sft_steps} steps")
  sft_params = _fine_tune(study, corpus, model, start, say)
  nll_P = _nll(model, sft_params, corpus, study)
  judged = _Judged(study, corpus, model, sft_params)
  clock.start("samples of the SFT policy, for best-of-n and the ceiling")
  sft, pool_PS = judged.draws(sft_params, seed=study.seed), judged.pool(sft_params)
  clock.start(f"{study.pairs} pairs for each of {len(study.seeds)} seeds")
  lab = _Lab(study, corpus, model, sft_params, judged)
  trained: list[Trained] = []
  for arm in study.arms:
    clock.start(f"{arm.label}: {len(arm.strengths) * len(study.seeds)} runs")
    trained += lab.train(arm, arm.label, "true")
  dpo = Arm("DPO", Use("dpo"), (study.checked,))
  for kind in ("flipped", "random"):
    clock.start(f"DPO on {kind} labels: {len(study.seeds)} runs")
    trained += lab.train(dpo, kind, kind)
  clock.start(f"reward models: {len(study.seeds)} runs")
  judges = [lab.judge(seed) for seed in study.seeds]
  counts = {
    "texts": sum(map(len, corpus.demonstrations.values())),
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


def _optimizer(rate: float) -> optim.Optimizer:
  return optim.Optimizer(learning_rate=rate, warmup_steps=10, floor=0.1)


class Trainer:
  """The trainer's own step for one objective; all its runs share one compilation."""

  def __init__(self, use: Use, model: transformer.Model, params: Params, steps: int):
    self._objective = use.build()
    optimizer = _optimizer(1.0)  # the peak is a knob
    self._update = step.make_step(use.build, {"policy": model}, optimizer, steps)
    chain = optim.transform(optimizer, model.logical_axes())

    def create(key):
      start = state.with_heads(self._objective, params, model.config.width, key)
      return state.create(start, chain, self._objective.init(), key)

    self._create = jax.jit(create)

  def __call__(
    self, batches: Iterable[pack.Batch], knobs: Mapping[str, Any], seed: int
  ) -> tuple[Params, dict[str, np.ndarray]]:
    """One run: the final parameters, and metric -> one value a step.

    Raises:
      FloatingPointError: a loss that is not finite.
    """
    run, metrics = self._create(jax.random.key(seed)), []
    for batch in batches:
      run, found = self._update(run, {}, batch, knobs)
      metrics.append(found)
    fetched = jax.device_get(metrics)  # once: nothing waits for a step
    curve = {name: np.array([m[name] for m in fetched]) for name in fetched[0]}
    bad = np.flatnonzero(~np.isfinite(curve["loss"]))
    if bad.size:
      raise FloatingPointError(f"loss is {curve['loss'][bad[0]]} at step {bad[0]}")
    return run.params, curve


def _fine_tune(study: Study, corpus, model, start: Params, say: Say) -> Params:
  examples = corpus.examples("train", study.longest)
  plan = functools.partial(
    pack.plan, examples, rows_per_step=study.sft_rows, row_length=study.row_length
  )
  epochs = -(-study.sft_steps // len(plan())) + 1
  data = plan(seed=study.seed, epochs=epochs, steps=study.sft_steps)
  train = Trainer(Use("sft"), model, start, study.sft_steps)
  knobs = step.knobs(_optimizer(study.sft_rate))
  params, curve = train((data[i] for i in range(len(data))), knobs, study.seed)
  first, last = curve["loss"][0], curve["loss"][-20:].mean()
  say(f"          {first:.2f} -> {last:.2f} nats a token")
  return params


def _nll(model, params, corpus, study) -> np.ndarray:
  """Nats a token of each held-out text's completion."""
  examples = corpus.examples(study.split, study.longest)[: 4 * study.prompts]
  logp_B = sequences.score_pairs(model, params, params, examples)["logp_BK"][:, 0]
  return -logp_B / np.array([len(e.completions[0]) for e in examples])


class _Judged:
  """How every policy is sampled and rewarded, on the same prompts."""

  def __init__(self, study: Study, corpus, model, ref: Params):
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._prompts = corpus.prompts(study.split)[: study.prompts]

  def draws(self, params: Params, seed: int) -> evaluate.Draws:
    return evaluate.draw(
      self._model,
      params,
      self._ref,
      self._prompts,
      self._corpus.tokenizer,
      world.true_reward,
      completions=self._study.samples,
      max_tokens=self._study.longest,
      key=jax.random.fold_in(jax.random.key(seed), 1),
      batch=self._study.prompts,
    )

  def pool(self, params: Params) -> np.ndarray:
    """Rewards of many samples a prompt."""
    _, texts = sentiment_data.complete(
      self._model,
      params,
      self._corpus.tokenizer,
      self._prompts,
      completions=self._study.pool,
      longest=self._study.longest,
      key=jax.random.fold_in(jax.random.key(self._study.seed), 2),
    )
    return world.true_reward(texts).reshape(self._study.prompts, self._study.pool)


class _Lab:
  """Trains arms on the same pairs; a layout's batches are laid out once."""

  def __init__(self, study: Study, corpus, model, ref: Params, judged: _Judged):
    self._study, self._corpus, self._model, self._ref = study, corpus, model, ref
    self._judged = judged
    self.pairs = {seed: self._draw(seed, "train") for seed in study.seeds}
    self._batches: dict[tuple[Layout, str], dict[int, list[pack.Batch]]] = {}
    self._trainers: dict[str, Trainer] = {}

  def _draw(self, seed: int, split: str) -> sentiment_data.Pairs:
    """Pairs over the prompts of a split; each is used as often as any other, +-1."""
    prompts = self._corpus.prompts(split)
    rng = np.random.default_rng((self._study.seed, seed, len(split)))
    turns = -(-self._study.pairs // len(prompts))
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(turns)])
    return sentiment_data.draw_pairs(
      self._model,
      self._ref,
      self._corpus.tokenizer,
      [prompts[i] for i in order[: self._study.pairs]],
      longest=self._study.longest,
      key=jax.random.key(int(rng.integers(2**31))),
    )

  def train(self, arm: Arm, label: str, kind: str) -> list[Trained]:
    """An arm's runs over strengths and seeds, on labels of one kind."""
    batches = self._laid_out(arm.objective.build().layout, kind)
    trainer = self._trainer(arm.objective, batches)
    out = []
    for seed in self._study.seeds:
      for strength in arm.strengths:
        began = time.perf_counter()
        params, curve = trainer(batches[seed], arm.knobs(strength), seed)
        seconds = time.perf_counter() - began
        draws = self._judged.draws(params, seed)
        out.append(Trained(label, strength, seed, draws, curve, seconds))
    return out

  def judge(self, seed: int) -> Judge:
    """A reward model on one seed's pairs, judged on pairs of held-out prompts."""
    study, use = self._study, Use("bradley_terry")
    batches = self._laid_out(use.build().layout, "true")
    knobs = step.knobs(_optimizer(study.judge_rate))
    params, _ = self._trainer(use, batches)(batches[seed], knobs, seed)
    pairs = self._draw(seed, study.split)
    # Other labels than any run has seen.
    labels = sentiment_data.label(pairs, study.temperature, (seed, 1))
    found = sequences.score_pairs(self._model, params, self._ref, labels)["value_BK"]
    reward_P2 = pairs.in_order(labels)
    untied_P = reward_P2[:, 0] != reward_P2[:, 1]
    agrees_P = (found[:, 0] > found[:, 1])[untied_P]
    right_P = agrees_P == (reward_P2[:, 0] > reward_P2[:, 1])[untied_P]
    optimum = world.expected_accuracy(*reward_P2.T, study.temperature)
    return Judge(seed, right_P.astype(float), agrees_P.astype(float), optimum)

  def _trainer(self, use: Use, batches: dict[int, list[pack.Batch]]) -> Trainer:
    if use.name not in self._trainers:
      steps = len(next(iter(batches.values())))
      self._trainers[use.name] = Trainer(use, self._model, self._ref, steps)
    return self._trainers[use.name]

  def _laid_out(self, layout: Layout, kind: str) -> dict[int, list[pack.Batch]]:
    """One epoch of each seed: equal shapes and numbers of steps, on the device."""
    if (layout, kind) in self._batches:
      return self._batches[layout, kind]
    study = self._study
    examples = {}
    for seed, pairs in self.pairs.items():
      labelled = sentiment_data.label(pairs, study.temperature, (seed, 0), kind)
      examples[seed] = collate.to_layout(labelled, layout, seed)
    # A layout of two rows a pair (KTO) has twice the rows: a step covers as many pairs.
    rows = study.rows * round(len(examples[seed]) / len(self.pairs[seed].prompts))
    plan = functools.partial(pack.plan, rows_per_step=rows, row_length=study.row_length)
    first = [plan(e, seed=seed) for seed, e in examples.items()]
    steps = min(map(len, first))
    sizes = zip(*(p.shape for p in first), strict=True)
    shape = pack.Shape(*map(max, sizes))
    self._batches[layout, kind] = {
      seed: self._scored(plan(e, seed=seed, steps=steps, shape=shape))
      for seed, e in examples.items()
    }
    return self._batches[layout, kind]

  def _scored(self, plan: pack.Batches) -> list[pack.Batch]:
    """The batches on the device, each with the reference's log-probs."""
    scorer = references.scorer(self._model, (REF_LOGP,))
    batches = (jax.device_put(plan[i]) for i in range(len(plan)))
    return [batch.replace(ref=scorer(self._ref, batch)) for batch in batches]
