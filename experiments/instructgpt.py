"""InstructGPT in three stages: SFT, a K-wise reward model, PPO with and without ptx.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155: 4 to 9 answers ranked by
  people, a reward model on all pairs of a list, PPO against it from its own weights'
  value, and PPO-ptx, which adds 27.8 times the language-model loss on pretraining text.
Command: xpo train instructgpt [--iterations 40 --beta 0.2]
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: reward rises above the SFT model's with and without ptx; the loss on text of
  another kind drifts up under PPO, stays with a large gamma at little cost in reward,
  and a larger beta does not do the same (paper, App. E.6: ptx of at least 20 mends what
  PPO forgets, 100 times the KL coefficient does not).
Departs from the paper: the labeller is the world's true reward with logistic noise; all
  models have one size; the pretraining text is a little grammar of its own, on which
  the SFT model was trained too, so that there is something to forget.
Result: nats a token of held-out other text from {SFT | other_text_nll.mean} to {PPO |
  other_text_nll} under PPO, {PPO-ptx, gamma 1 | other_text_nll} under PPO-ptx with
  gamma 1, at equal true reward; three seeds.
"""

import dataclasses
from pathlib import Path

from xpo_jax.config.experiment import AuxLossConfig, Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import reward_model
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ranked_lists, sequel_texts
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class InstructGpt:
  """Settings.

  Attributes:
    completions: of each prompt, ranked. Paper: 4 to 9.
    noise: reward that is one logit of the labeller.
    num_texts: of the other grammar, drawn from the three quarters of it that are not
      held out.
    epochs: passes of supervised fine-tuning over both.
    reward_epochs: passes of the reward model over the lists. Paper: 1.
    beta: of PPO, whose rewards deviate by 1 on the SFT model's samples. Paper: 0.02.
    large_beta: instead of ptx. Paper: 100 times as much.
    gammas: weights of the language-model loss. Paper: 27.8; 0 is PPO alone.
    iterations: of PPO.
    task: start, reward and sizes.
  """

  completions: int = 4
  noise: float = 0.25
  num_texts: int = 2000
  epochs: int = 1
  reward_epochs: int = 3
  beta: float = 0.2
  large_beta: float = 2.0
  gammas: tuple[float, ...] = (0.0, 1.0, 30.0)
  iterations: int = 40
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if self.completions < 2:
      raise ValueError(
        f"InstructGpt.completions is {self.completions}; rank 2 at least"
      )
    if not self.noise > 0:
      raise ValueError(f"InstructGpt.noise is {self.noise}; it must be > 0")


def experiment(source: str | None = None, policy: str | None = None) -> InstructGpt:
  """Synthetic reviews and a second grammar, or texts and a policy of your own."""
  return InstructGpt(task=Task(source, policy=policy))


def sft(settings: InstructGpt) -> Experiment:
  """Fine-tunes the task's start on its texts and on the other text."""
  task = settings.task
  both = Configured(
    sequel_texts.with_reviews,
    reviews=tasks.prompts(task),
    num_texts=settings.num_texts,
  )
  return tasks.on_records(ObjectiveConfig("sft"), task, both, epochs=settings.epochs)


def reward(settings: InstructGpt, seed: int) -> Experiment:
  """A K-wise reward model on lists that a noisy labeller ranked."""
  task, begin = settings.task, Stage(sft(settings))
  lists = Configured(
    ranked_lists.noisy,
    policy=begin,
    prompts=tasks.prompts(task),
    reward=task.reward,
    completions=settings.completions,
    max_completion_tokens=task.max_completion_tokens,
    num_prompts=task.num_prompts,
    noise=settings.noise,
    seed=seed,
  )
  return tasks.on_records(
    ObjectiveConfig("kwise"),
    task,
    lists,
    seed=seed,
    epochs=settings.reward_epochs,
    start=begin,
  )


def ppo(settings: InstructGpt, beta: float, gamma: float, seed: int) -> Experiment:
  """PPO against the reward model, with gamma times the language-model loss."""
  task, model = settings.task, Stage(reward(settings, seed))
  aux_losses = ()
  if gamma:
    other = Configured(sequel_texts.learned, num_texts=settings.num_texts)
    data = tasks.on_records(ObjectiveConfig("sft"), task, other, seed=seed).data
    aux_losses = (AuxLossConfig(gamma, ObjectiveConfig("sft"), data),)
  return tasks.on_rollouts(
    ObjectiveConfig("ppo", beta=beta, whiten_reward=False),
    task,
    feedback=Feedback(
      Configured(reward_model.scorer, directory=model),
      missing_eos=task.missing_eos(1.0),
    ),
    start=Stage(sft(settings)),
    seed=seed,
    iterations=settings.iterations,
    minibatches=2,
    critic_init=model,
    aux_losses=aux_losses,
  )


def variants(settings: InstructGpt) -> dict[str, tuple[float, float]]:
  """Label -> beta and gamma of PPO."""
  labels = {_label(gamma): (settings.beta, gamma) for gamma in settings.gammas}
  return labels | {f"PPO, beta {settings.large_beta:g}": (settings.large_beta, 0.0)}


def arms(settings: InstructGpt) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": ppo(settings, beta, gamma, seed)
    for label, (beta, gamma) in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: InstructGpt, run_dir: Path) -> int:
  """Trains SFT, reward models and policies, and judges them."""
  from xpo_jax.feedback import protocol
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms
  from xpo_jax.train import run_directory

  study = study_arms.open_study(settings, run_dir)
  reference = run_directory.policy(study_arms.train(study, sft(settings)))
  held_out = sequel_texts.held_out()

  def proxy(seed, draws):
    directory = run_directory.policy(study_arms.train(study, reward(settings, seed)))
    scorer = reward_model.scorer(str(directory))
    return protocol.score_groups(scorer, draws.prompts, draws.texts)

  begin = study_arms.policy(study, sft(settings)).params
  trained = {"SFT": study_arms.Trained(dict.fromkeys(settings.task.seeds, begin))}
  for label, (beta, gamma) in variants(settings).items():
    trained[label] = study_arms.train_arm(
      study, lambda seed, b=beta, g=gamma: ppo(settings, b, g, seed)
    )
  rows = [
    study_arms.row(
      study,
      label,
      one,
      reference=reference,
      scores={"reward model": proxy},
      other_nll=study_arms.nll(study, list(one.policies.values()), held_out),
    )
    for label, one in trained.items()
  ]
  title = "InstructGPT; other_nll: nats a token of the other text"
  demo.show(study_arms.finish(study, title, rows))
  return 0


def _label(gamma: float) -> str:
  return f"PPO-ptx, gamma {gamma:g}" if gamma else "PPO"
