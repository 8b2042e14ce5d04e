"""What a person sees of a run."""

import sys

from xpo_jax.train import progress

LINE = {"step": 3, "loss": 0.693147, "reward_accuracy": 0.5, "epoch": 0}
LINE |= {"eval/loss": 0.7, "time/tokens_per_second": 12345.6}


def test_plain_line_tells_step_loss_and_speed():
  said = []
  with progress.following(steps=9, done=0, say=said.append) as report:
    report(LINE)
  assert said == [
    "step 3/9  loss 0.6931  reward_accuracy 0.5  eval/loss 0.7  12,346 tokens/s"
  ]
  assert progress.describe(LINE | {"time/evaluation": 12.34}).endswith(
    "12,346 tokens/s  evaluation 12.3 s"
  )


def test_terminal_gets_a_bar_and_no_lines(monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  monkeypatch.setenv("COLUMNS", "100")
  with progress.following(steps=9, done=0) as report:
    report(LINE)
  shown = capsys.readouterr().out
  assert "step 3/9" in shown and "step 3/9  loss" not in shown


def test_lines_that_go_elsewhere_leave_the_terminal_alone(monkeypatch, capsys):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  said = []
  with progress.following(steps=9, done=0, say=said.append) as report:
    report(LINE)
  assert len(said) == 1 and capsys.readouterr().out == ""
