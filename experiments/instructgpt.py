"""InstructGPT in three stages: SFT, a K-wise reward model, PPO with and without ptx.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155: 4 to 9 answers ranked by
  people, a reward model on all pairs of a list, PPO against it from its own weights'
  value, and PPO-ptx, which adds 27.8 times the language-model loss on pretraining text.
Command: xpo train instructgpt [--iterations 40 --beta 0.2]
Hardware: 2 CPU cores; eight minutes for three seeds on one of them, beside other jobs.
Expected: reward rises above the SFT model's with and without ptx; the loss on text of
  another kind drifts up under PPO, stays with a large gamma at little cost in reward,
  and a larger beta does not do the same (paper, App. E.6: ptx of at least 20 mends what
  PPO forgets, 100 times the KL coefficient does not).
Departs from the paper: the labeller is the world's true reward with logistic noise; all
  models have one size; the pretraining text is a little grammar of its own, on which
  the SFT model was trained too, so that there is something to forget.
Last result: 2026-11-22, three seeds, intervals over 128 prompts and seeds. True reward,
  from 0.099: PPO 0.545 [0.504, 0.582] at 0.96 nats, PPO-ptx of gamma 1 0.546 [0.506,
  0.587] at 0.98, of 30 0.517 [0.486, 0.545] at 0.90, beta 2 0.275 [0.239, 0.309] at
  0.11; the reward model's 0.96, 0.95, 0.91, 0.41. Other text that was held out, nats a
  token: 0.788 [0.784, 0.792] before, 0.920 [0.834, 1.078], 0.762 [0.757, 0.767], 0.756
  [0.749, 0.762], 0.794 [0.790, 0.798]: PPO drifts; ptx does not, it goes on learning
  that text, at no cost in reward that these seeds can tell; a larger beta drifts less
  for two fifths of the gain.
"""

import dataclasses
import itertools
import time
from pathlib import Path

from xpo_jax.studies.multistage.staged_world import World

START = "sft-on-both"  # the stage that has learned reviews and the other text


@dataclasses.dataclass(frozen=True)
class InstructGpt:
  """Settings.

  Attributes:
    answers: of each prompt, ranked. Paper: 4 to 9.
    noise: reward that is one logit of the labeller.
    texts: of the other grammar, drawn from the three quarters of it that are not held
      out.
    epochs: passes of supervised fine-tuning over both.
    reward_epochs: passes of the reward model over the lists. Paper: 1.
    beta: of PPO, whose rewards deviate by 1 on the SFT model's samples. Paper: 0.02.
    strict: a larger beta, without ptx. Paper: 100 times as much.
    gammas: weights of the language-model loss. Paper: 27.8; 0 is PPO alone.
    iterations: of PPO.
    world: start and sizes.
  """

  answers: int = 4
  noise: float = 0.25
  texts: int = 2000
  epochs: int = 1
  reward_epochs: int = 3
  beta: float = 0.2
  strict: float = 2.0
  gammas: tuple[float, ...] = (0.0, 1.0, 30.0)
  iterations: int = 40
  world: World = dataclasses.field(default_factory=World)

  def __post_init__(self):
    if self.answers < 2:
      raise ValueError(f"InstructGpt.answers is {self.answers}; rank 2 at least")
    if not self.noise > 0:
      raise ValueError(f"InstructGpt.noise is {self.noise}; it must be > 0")


def experiment() -> InstructGpt:
  """The embedded world and a second grammar."""
  return InstructGpt()


def run(settings: InstructGpt, run_dir: Path) -> int:
  """Fine-tunes, ranks, trains reward model and policies, judges."""
  from xpo_jax.config.factories import Configured, ObjectiveConfig
  from xpo_jax.config.sampling import Feedback
  from xpo_jax.feedback import protocol, reward_model
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import staged

  lab = staged.Lab(settings, run_dir)
  learned, held = _sequels(settings.texts)
  reviews = lab.demonstrations["train"][: settings.texts]
  both = [row for two in zip(reviews, learned, strict=False) for row in two]
  start = lab.stage(START, ObjectiveConfig("sft"), both, epochs=settings.epochs)
  arms = {_label(settings, gamma): (settings.beta, gamma) for gamma in settings.gammas}
  arms[f"PPO, beta {settings.strict:g}"] = (settings.strict, 0.0)
  policies, seconds, scorers = {label: {} for label in arms}, dict.fromkeys(arms, 0), {}
  for seed in settings.world.seeds:
    rows = _ranked(settings, lab, start, seed)
    how = {"start": START, "seed": seed, "epochs": settings.reward_epochs}
    directory = str(
      lab.reward(f"reward-{seed}", rows, objective=ObjectiveConfig("kwise"), **how)
    )
    scorers[seed] = reward_model.scorer(directory)
    judge = Configured(reward_model.scorer, directory=directory)
    feedback = Feedback(judge, missing_eos=lab.world.missing_eos(1.0))
    for label, (beta, gamma) in arms.items():
      began = time.perf_counter()
      done = lab.online(
        f"{label.replace(', ', '-').replace(' ', '-')}-{seed}",
        ObjectiveConfig("ppo", beta=beta, whiten_reward=False),
        feedback=feedback,
        start=START,
        seed=seed,
        datasets={"other": learned},
        iterations=settings.iterations,
        minibatches=2,
        critic_init=directory,
        aux_losses=_parts(lab, gamma, seed),
      )
      policies[label][seed] = done.params
      seconds[label] += time.perf_counter() - began

  def proxy(seed, draws):
    return protocol.score_groups(scorers[seed], draws.prompts, draws.texts)

  policies = {"SFT": dict.fromkeys(settings.world.seeds, start.params)} | policies
  rows = [
    lab.row(
      label,
      trained,
      seconds.get(label, 0.0),
      reference=START,
      scores={"reward model": proxy},
      other_nll=lab.nll(trained.values(), held),
    )
    for label, trained in policies.items()
  ]
  demo.show(lab.finish("InstructGPT; other_nll: nats a token of the other text", rows))
  return 0


def _label(settings: InstructGpt, gamma: float) -> str:
  return f"PPO-ptx, gamma {gamma:g}" if gamma else "PPO"


def _parts(lab, gamma: float, seed: int):
  """The language-model loss beside PPO's."""
  from xpo_jax.config.experiment import AuxLossConfig
  from xpo_jax.config.factories import ObjectiveConfig

  if not gamma:
    return ()
  return (AuxLossConfig(gamma, ObjectiveConfig("sft"), lab.data("other", seed=seed)),)


def _ranked(settings: InstructGpt, lab, start, seed: int):
  """Lists of samples in the order of a noisy labeller.

  Standard Gumbel noise on logits: orders are Plackett-Luce, every pair of them
  Bradley-Terry, of the true reward.
  """
  import numpy as np

  from xpo_jax.data import records

  sampled = lab.sample(start.params, completions=settings.answers, seed=seed)
  noise_BK = np.random.default_rng((seed, 7)).gumbel(size=sampled.reward_BK.shape)
  told_BK = sampled.reward_BK / settings.noise + noise_BK
  rows = []
  for b, (prompt, texts) in enumerate(
    zip(sampled.prompts, sampled.texts_BK, strict=True)
  ):
    # Two equal texts have two places in the order: what remains of them is noise.
    written = {text: told for text, told in zip(texts, told_BK[b], strict=True)}
    written = {text: float(told) for text, told in written.items() if text.strip()}
    if len(written) > 1:
      rows.append(
        records.Ranked(f"prompt {b}", prompt, tuple(written), tuple(written.values()))
      )
  return rows


_PARTS = (
  "acting plot script dialogue ending opening music camera pace editing setting cast"
).split()
_KINDS = "film movie noir western musical drama sequel remake cartoon epic".split()


def _sequels(count: int):
  """Text of another grammar: which part of a film follows which, always the same.

  Same words as the reviews', no word of praise or blame.

  Returns:
    So many rows to learn, and one of each prompt that is in none of them.
  """
  import numpy as np

  from xpo_jax.data import records

  def row(name: str, first: int, kind: int):
    one, two, three, four = (_PARTS[(first + k) % len(_PARTS)] for k in range(4))
    prompt = f"in the {_KINDS[kind]} the {one} and"
    return records.Demonstration(name, prompt, f" the {two}, the {three}, the {four}.")

  every = list(itertools.product(range(len(_PARTS)), range(len(_KINDS))))
  held = [at for at in every if sum(at) % 4 == 0]
  rest = [at for at in every if sum(at) % 4]
  drawn = np.random.default_rng(0).integers(len(rest), size=count)
  learned = [row(f"other {i}", *rest[n]) for i, n in enumerate(drawn)]
  return learned, [row(f"held out {i}", *at) for i, at in enumerate(held)]
