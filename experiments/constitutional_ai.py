"""Constitutional AI: revise by principles and imitate; then prefer by principles, RL.

Paper: Bai et al. 2022, arXiv:2212.08073. SL-CAI: four rounds of critique and revision
  of a model's completions, supervised fine-tuning on the revisions. RL-CAI: two samples
  each, preferred by a drawn principle, soft labels; labels made after reasoning, which
  are too sure, are clamped to [0.4, 0.6]; a preference model; RL.
Command: xpo train constitutional_ai [source=FILE policy=DIR]
  [--critic.error 0.1 --judge.error 0.1 --reasoning-judge.temperature 0.05]
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: harsh words fall with every revision and in SL-CAI, further in RL-CAI (paper:
  harmlessness of RL-CAI above SL-CAI above the helpful model); of a judge that is too
  sure, clamped labels are worth no less than the same unclamped. That a language model
  can criticise, revise and judge by a principle is the claim itself, and cannot be
  tested at this size: by default a script does, and errs at a stated rate.
Departs from the paper: harm is a word that VADER holds to be negative, a revision
  replaces one of them, the principles are to use few such words and to be kind; no data
  on helpfulness are mixed in; SL-CAI starts from the SFT model.
Result: SL-CAI, harsh words in a completion {SL-CAI | harsh}, from {SFT | harsh}; three
  seeds. RL-CAI has more reward, but not separably fewer harsh words; clamped and
  unclamped labels are not separable.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from xpo_jax import objectives
from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import noisy_judge, protocol, reward_model
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ai_labels_data, principles, revisions, seeding
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class ConstitutionalAi:
  """Settings.

  Attributes:
    critic: makes the `feedback.constitution.Critic`; a `seed` that it or a judge takes
      is the run's.
    judge: makes the `Preference` that labels without reasoning, asked in both orders.
    reasoning_judge: makes the one that reasons first, and is too sure.
    rounds: of critique and revision. Paper: 4.
    low: least probability of the reasoning judge's labels. Paper: 0.4.
    high: the greatest. Paper: 0.6.
    epochs: over revisions. Paper: 1.
    reward_epochs: of the preference model over its pairs. Paper: 1.
    beta: of PPO, for rewards of deviation 1 on samples of the SL-CAI policy.
    iterations: of PPO.
    task: start, reward and sizes.
  """

  critic: Configured = dataclasses.field(
    default_factory=lambda: Configured(noisy_judge.critic, error=0.1)
  )
  judge: Configured = dataclasses.field(
    default_factory=lambda: Configured(
      principles.preference, error=0.1, temperature=0.5
    )
  )
  reasoning_judge: Configured = dataclasses.field(
    default_factory=lambda: Configured(
      principles.preference, error=0.1, temperature=0.05
    )
  )
  rounds: int = 4
  low: float = 0.4
  high: float = 0.6
  epochs: int = 1
  reward_epochs: int = 4
  beta: float = 0.05
  iterations: int = 30
  task: Task = dataclasses.field(default_factory=lambda: Task(num_prompts=2400))


def experiment(
  source: str | None = None, policy: str | None = None
) -> ConstitutionalAi:
  """A scripted critic and judges on synthetic reviews, or on texts and a policy of your
  own."""
  return ConstitutionalAi(task=Task(source, policy=policy, num_prompts=2400))


def sl_cai(settings: ConstitutionalAi, seed: int) -> Experiment:
  """Supervised fine-tuning on every revision."""
  task = settings.task
  revised = tasks.from_start(
    revisions.demonstrations,
    task,
    seed=seed,
    critic=seeding.with_seed(settings.critic, seed),
    rounds=settings.rounds,
  )
  return tasks.on_records(
    ObjectiveConfig("sft"), task, revised, seed=seed, epochs=settings.epochs
  )


def soft(settings: ConstitutionalAi, seed: int) -> Configured:
  """The judge that does not reason, averaged over both orders."""
  judge = seeding.with_seed(settings.judge, seed)
  return Configured(protocol.both_orders, preference=judge)


def unclamped(settings: ConstitutionalAi, seed: int) -> Configured:
  """The judge that reasons, averaged over both orders."""
  judge = seeding.with_seed(settings.reasoning_judge, seed)
  return Configured(protocol.both_orders, preference=judge)


def clamped(settings: ConstitutionalAi, seed: int) -> Configured:
  """The same, its probabilities clamped."""
  return Configured(
    protocol.clamped,
    preference=unclamped(settings, seed),
    low=settings.low,
    high=settings.high,
  )


Judge = Callable[[ConstitutionalAi, int], Configured]
ARMS: dict[str, Judge] = {
  "RL-CAI": soft,
  "RL-CAI, reasoning": clamped,
  "the same, unclamped": unclamped,
}


def preference_model(settings: ConstitutionalAi, judge: Judge, seed: int) -> Experiment:
  """A reward model of a judge's labels on samples of SL-CAI, from which it starts."""
  task, start = settings.task, Stage(sl_cai(settings, seed))
  pairs = Configured(
    ai_labels_data.two_samples,
    policy=start,
    prompts=tasks.prompts(task),
    max_completion_tokens=task.max_completion_tokens,
    num_prompts=task.num_prompts,
    seed=seed,
  )
  return tasks.on_records(
    ObjectiveConfig(objectives.soft_bradley_terry),
    task,
    Configured(
      ai_labels_data.judged, pairs=pairs, judge=judge(settings, seed), seed=seed
    ),
    start=start,
    seed=seed,
    epochs=settings.reward_epochs,
  )


def rl_cai(settings: ConstitutionalAi, judge: Judge, seed: int) -> Experiment:
  """PPO from SL-CAI, its reference, against the preference model of a judge.

  Args:
    settings: of the study.
    judge: of `ARMS`.
    seed: of labels, samples and draws.
  """
  task = settings.task
  model = Stage(preference_model(settings, judge, seed))
  return tasks.on_rollouts(
    ObjectiveConfig("ppo", beta=settings.beta, whiten_reward=False),
    task,
    feedback=Feedback(
      Configured(reward_model.scorer, directory=model),
      missing_eos=task.missing_eos(1.0),
    ),
    start=Stage(sl_cai(settings, seed)),
    iterations=settings.iterations,
    minibatches=2,
    seed=seed,
  )


def variants(settings: ConstitutionalAi) -> dict[str, Callable[[int], Experiment]]:
  """Label of an arm -> seed -> its experiment."""
  return {"SL-CAI": functools.partial(sl_cai, settings)} | {
    label: functools.partial(rl_cai, settings, judge) for label, judge in ARMS.items()
  }


def arms(settings: ConstitutionalAi) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": make(seed)
    for label, make in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: ConstitutionalAi, run_dir: Path) -> int:
  """Trains SL-CAI and RL-CAI by each judge, counts harsh words."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  harshness = noisy_judge.negative_word_count()

  def harsh_PK(seed, draws):
    return protocol.score_groups(harshness, draws.prompts, draws.texts)

  scores = {"harsh": harsh_PK}
  rows = [study_arms.start_row(study, scores=scores)]
  for label, make in variants(settings).items():
    trained = study_arms.train_arm(study, make)
    rows.append(study_arms.row(study, label, trained, scores=scores))
  by_round = ", ".join(f"{mean:.3f}" for mean in _harsh_by_round(settings, study))
  title = f"Constitutional AI; harsh words by round of revision: {by_round}"
  demo.show(study_arms.finish(study, title, rows))
  return 0


def _harsh_by_round(settings: ConstitutionalAi, study) -> list[float]:
  """Harsh words in a text before the first revision and after each, over seeds."""
  from xpo_jax.studies.multistage import arms as study_arms

  task, by_seed = settings.task, []
  for seed in task.seeds:
    originals = revisions.originals(
      str(study_arms.start_directory(study)),
      tasks.prompts(task),
      max_completion_tokens=task.max_completion_tokens,
      num_prompts=task.num_prompts,
      seed=seed,
    )
    revised = study_arms.trained_records(study, sl_cai(settings, seed))
    by_seed.append(
      revisions.score_by_round(noisy_judge.negative_word_count(), originals, revised)
    )
  return [sum(means) / len(by_seed) for means in zip(*by_seed, strict=True)]
