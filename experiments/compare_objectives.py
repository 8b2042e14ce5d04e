"""Every pairwise and binary objective side by side: reward at equal KL to the start.

Paper: none of its own; KL is matched as in Rafailov et al. 2023, arXiv:2305.18290, Sec.
  6.1, and every objective is its own paper's at its defaults, but for `CONFIGURED`.
Command: xpo compare-objectives [source=FILE --bad-rows drop] [--only dpo,ipo]
  source: as of the recipe controlled_sentiment; without it, synthetic reviews.
  The same command with the same --run-dir goes on with an interrupted run.
Hardware: 2 CPU cores, half an hour.
Expected: no paper compares these at equal KL. Differences are small beside the optimal
  policy's reward, and a default made for another scale can put an objective last.
Result: dpo, true reward {dpo, synthetic reviews, at 1.3 nats | reward} at 1.3 nats,
  three seeds; of 42 objectives tdpo2, chi_po and ipo have more, 18 less.
"""

from pathlib import Path

from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies.comparison.settings import Comparison

# As the result was recorded: the default has changed since.
CONFIGURED = (ObjectiveConfig("dpop", beta=0.1),)


def experiment(source: str | None = None) -> Comparison:
  """Settings for synthetic reviews, or for some ten thousand short sentences."""
  if source is None:
    return Comparison(configured=CONFIGURED)
  return Comparison(
    source=source,
    configured=CONFIGURED,
    num_texts=None,
    vocab=2048,
    sft_steps=600,
    sft_rows=12,
    max_completion_tokens=20,
    num_pairs=600,
    rows=4,
  )


def run(comparison: Comparison, run_dir: Path) -> int:
  """The comparison and its page; returns 1 where an objective had an error."""
  from xpo_jax.studies import demo

  demo.environment()
  from xpo_jax.report import dot_plot, run_page
  from xpo_jax.studies.comparison import comparison_page, train_objectives

  result = train_objectives.run(
    comparison, run_dir, lambda line: print(line, flush=True)
  )
  command = "xpo compare-objectives"
  if comparison.source is not None:
    command += f" source={comparison.source} --bad-rows {comparison.bad_rows}"
  if comparison.only is not None:
    command += f" --only {comparison.only}"
  shown = comparison_page.lines(result)
  plot = dot_plot.svg(comparison_page.plot(result, shown), standalone=True)
  (run_dir / comparison_page.PLOT).write_text(plot, encoding="utf-8")
  written = run_page.write_page(run_dir, comparison_page.build(result, shown, command))
  demo.show(comparison_page.table(result, shown))
  print(f"report: {written}")
  failed = [entry for entry in result.entries if entry.error is not None]
  for entry in failed:
    print(f"ERROR in {entry.name}: {entry.error}")
  return 1 if failed else 0
