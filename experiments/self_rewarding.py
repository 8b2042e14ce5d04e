"""Self-rewarding: a policy that rates its own samples, and learns from its ratings.

Paper: Yuan et al. 2024, arXiv:2401.10020: M0 pretrained; M1 fine-tuned on seed answers
  and seed ratings; M2 and M3 each one round of DPO (beta 0.1, the model before as
  reference) on the best against the worst of 4 samples, rated by the model itself.
Command: xpo train self_rewarding [--error 0.1 --rounds 2]
Hardware: 2 CPU cores; eleven minutes for three seeds, beside other jobs.
Expected: the policies get better from M1 to M3, and so do they as judges (paper:
  AlpacaEval win rates 9.9, 15.4, 20.4 %; judging 78.7, 80.4, 81.7 % of pairs right).
  The claim itself, that a language model teaches itself to follow instructions and to
  judge, cannot be tested at this size: see the last result. The arm whose judge is the
  scripted rater of the seed shows the loop without that claim.
Departs from the paper: no new prompts are written; a rating is the mean under the
  probabilities of 1 to 5, where the paper averages three that are written out; M1's
  seed answers are reviews as the world writes them, not chosen ones.
Last result: 2026-11-22, three seeds, 128 held-out prompts x 4 samples, intervals over
  prompts and seeds. M0 to M3 order 49 to 50 % of pairs right, each interval within 47.1
  and 52.4: M1 does not learn to judge, and its own judge leads nowhere: true reward
  0.116 [0.083, 0.150] of M0, 0.108 [0.072, 0.143] of M1, 0.094 [0.050, 0.145] of M2,
  0.086 [0.029, 0.153] of M3 at 0.2, 1.0, 3.1 nats. By the scripted judge: M2 0.191
  [0.149, 0.234], M3 0.291 [0.238, 0.341] at 0.4 and 0.9 nats.
"""

import dataclasses
import time
from pathlib import Path

from xpo_jax.studies.multistage.staged_world import World


@dataclasses.dataclass(frozen=True)
class SelfRewarding:
  """Settings.

  Attributes:
    rounds: of DPO after M1. Paper: 2.
    beta: of DPO. Paper: 0.1.
    asked: prompts of a round.
    samples: for each prompt. Paper: 4.
    temperature: of the samples. Paper: 0.7.
    top_p: of the samples. Paper: 0.9.
    step_prompts: prompts of an update; divides `asked`. Paper: 16 pairs.
    rate: learning rate of DPO.
    seed_answers: reviews that M1 is fine-tuned on.
    seed_ratings: reviews of which it learns the rating, before they are balanced.
    error: share of the seed ratings, and of the scripted judge's, that are wrong.
    epochs: over the seed data.
    levels: of a rating.
    world: start and sizes.
  """

  rounds: int = 2
  beta: float = 0.1
  asked: int = 480
  samples: int = 4
  temperature: float = 0.7
  top_p: float = 0.9
  step_prompts: int = 16
  rate: float = 3e-4
  seed_answers: int = 2000
  seed_ratings: int = 4000
  error: float = 0.1
  epochs: int = 2
  levels: int = 5
  world: World = dataclasses.field(
    default_factory=lambda: World(row_length=288, sft_rows=3)
  )

  def __post_init__(self):
    if self.asked % self.step_prompts:
      raise ValueError(
        f"SelfRewarding.step_prompts is {self.step_prompts}, which does not divide "
        f"asked = {self.asked}"
      )


def experiment() -> SelfRewarding:
  """Two rounds on the embedded world."""
  return SelfRewarding()


def run(settings: SelfRewarding, run_dir: Path) -> int:
  """M0 to M1 on the seed, rounds by two judges, judged as writers and as judges."""
  from xpo_jax.config.factories import Configured, ObjectiveConfig
  from xpo_jax.config.sampling import Feedback
  from xpo_jax.feedback import local, noisy_judge
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import feedback_accuracy, staged

  lab = staged.Lab(settings, run_dir)
  seeds = settings.world.seeds
  own = Configured(local.self_rating, prompt="brief", levels=settings.levels)
  script = {"error": settings.error, "levels": settings.levels - 1}
  raters = {
    seed: Feedback(Configured(noisy_judge.scorer, **script, seed=seed))
    for seed in seeds
  }
  arms = {
    "own judge": dict.fromkeys(seeds, Feedback(own)),
    "scripted judge": raters,
  }
  asked = {seed: feedback_accuracy.questions(lab, seed) for seed in seeds}
  rows = []

  def add(label, policies, began):
    seconds, make = time.perf_counter() - began, own.build().make
    judges = {
      seed: make(lab.model, params["lm"], lab.tokenizer)
      for seed, params in policies.items()
    }
    judging = feedback_accuracy.accuracy(judges, asked)
    rows.append(lab.row(label, policies, seconds, judging=judging))

  add("M0", dict.fromkeys(seeds, lab.start.params), time.perf_counter())
  began = time.perf_counter()
  first = {seed: f"M1-{seed}" for seed in seeds}
  made = {
    seed: lab.stage(
      first[seed],
      ObjectiveConfig("sft"),
      _seed_data(settings, lab, seed),
      seed=seed,
      epochs=settings.epochs,
    ).params
    for seed in seeds
  }
  add("M1", made, began)
  for label, feedback_of in arms.items():
    before = first
    for number in range(settings.rounds):
      began = time.perf_counter()
      names = {seed: f"M{2 + number}-{label.split()[0]}-{seed}" for seed in seeds}
      made = {
        seed: _round(settings, lab, names[seed], before[seed], feedback_of[seed], seed)
        for seed in seeds
      }
      add(f"M{2 + number}, {label}", made, began)
      before = names
  demo.show(lab.finish("Self-rewarding; judging: share of held-out pairs", rows))
  return 0


def _seed_data(settings: SelfRewarding, lab, seed: int):
  """Answers as they are, and ratings of others by a rater that errs."""
  from xpo_jax.feedback import labelling, noisy_judge

  most = settings.seed_answers + settings.seed_ratings
  known = lab.demonstrations["train"][:most]
  answers, rated = known[: settings.seed_answers], known[settings.seed_answers :]
  prompts, texts = zip(*((row.prompt, row.completion) for row in rated), strict=True)
  rate = noisy_judge.scorer(error=settings.error, levels=settings.levels - 1, seed=seed)
  levels_N = 1 + rate(prompts, texts).value_N.astype(int)
  hparams = {"prompt": "brief", "levels": settings.levels}
  return [
    *answers,
    *labelling.rating_demonstrations(prompts, texts, levels_N.tolist(), **hparams),
  ]


def _round(settings: SelfRewarding, lab, name: str, start: str, feedback, seed: int):
  """DPO on samples of the start, its reference, that feedback rated."""
  from xpo_jax.config.data import Evaluation
  from xpo_jax.config.factories import ObjectiveConfig
  from xpo_jax.config.optim import Optimizer
  from xpo_jax.config.sampling import Sampling

  sampling = Sampling(
    settings.samples,
    lab.world.longest,
    temperature=settings.temperature,
    top_p=settings.top_p,
  )
  done = lab.online(
    name,
    ObjectiveConfig("dpo", beta=settings.beta),
    feedback=feedback,
    start=start,
    seed=seed,
    sampling=sampling,
    iterations=1,
    prompts_per_iteration=settings.asked,
    minibatches=settings.asked // settings.step_prompts,
    optimizer=Optimizer(learning_rate=settings.rate, warmup_steps=3, floor=0.1),
    evaluation=Evaluation(),
  )
  return done.params
