"""Runs the `xpo` commands, each a call of a public function of the package.

Imports are deferred until a command needs them: `xpo --help` and `xpo list` do not
import JAX.
"""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from xpo_jax.config import trust

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h: try again
_DISK_FULL = os.strerror(errno.ENOSPC)  # also within messages of Orbax
_OVERRIDES = (
  "its arguments (path=FILE) and any field of the experiment may follow: "
  "--objective.beta 0.2 --data.epochs 2; "
  "--objective NAME takes another objective; RECIPE --help lists them all"
)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit code.

  0: done. 2: an error of the user (a wrong value, a missing file), one line on stderr;
  `--debug` shows its traceback. 75: SIGTERM or Ctrl-C ended a run or a study before its
  end; a checkpoint is written, and `xpo resume` goes on. 130: interrupted at once, by a
  second Ctrl-C or outside the steps. 141: a pipe was closed early
  (`xpo list | head -1`), which ends the command without a message.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    try:
      return _run(argv)
    finally:
      sys.stdout.flush()  # here, not when the interpreter exits
  except BrokenPipeError:
    if not _stdout_closed():
      raise
    # The interpreter flushes the remaining output when it exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _run(argv: list[str]) -> int:
  # Suppresses the notice of transformers that torch is missing.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  try:
    words, trusted = _without_trust(argv)
  except ValueError as error:
    return _fail(str(error))
  trust.allow(*trusted)
  debug = "--debug" in words
  args, overrides = _parser().parse_known_args([w for w in words if w != "--debug"])
  if overrides and not args.overrides:
    return _fail(
      f"xpo {args.command} does not know {' '.join(overrides)}; see its --help"
    )
  try:
    if "distributed" in args:
      _join(args)
    return args.run(args, overrides) or 0
  except (KeyboardInterrupt, ValueError, OSError, ImportError) as error:
    code = _failed(error, argv, debug)
    if "distributed" in args and args.distributed:
      _leave(error, code)
    return code


def _failed(error: BaseException, argv: list[str], debug: bool) -> int:
  """Prints why a command failed; returns the exit code."""
  if isinstance(error, KeyboardInterrupt):
    from xpo_jax.train import progress

    if isinstance(error, progress.Stopped):
      return _fail(str(error), UNFINISHED)
    return _fail("interrupted", 130)
  if debug or (isinstance(error, BrokenPipeError) and _stdout_closed()):
    raise error
  if isinstance(error, trust.ForeignCode):
    return _fail(f"{error}: xpo {shlex.join(argv)} {error.options}")
  if _DISK_FULL in str(error):
    return _fail(f"{error}; free some space, then go on (xpo resume RUN)")
  return _fail(str(error))


def _join(args) -> None:
  """Makes this process one of several, where --distributed is given."""
  given = {"--coordinator": args.coordinator, "--processes": args.processes}
  given["--process-index"] = args.process_index
  named = [f"{flag} {value}" for flag, value in given.items() if value is not None]
  if not args.distributed:
    if named:
      raise ValueError(f"{named[0]} is of --distributed: add it")
    return
  if 0 < len(named) < len(given):
    raise ValueError(
      f"{', '.join(named)}: give all of {', '.join(given)}, or none where JAX detects "
      "them (TPU pods, GKE, Slurm)"
    )
  from xpo_jax.sharding import distributed

  distributed.initialize(args.coordinator, args.processes, args.process_index)
  print(distributed.name(), flush=True)


def _leave(error: BaseException, code: int) -> None:
  """Ends one of several processes that failed alone.

  Not by the interpreter's exit, where JAX waits for the others, which may wait for this
  one: they are ended as if it had died.
  """
  from xpo_jax.sharding import distributed

  if distributed.is_initialized() and not isinstance(error, distributed.ProcessError):
    sys.stdout.flush()
    os._exit(code)


def _without_trust(argv: list[str]) -> tuple[list[str], list[str]]:
  """Splits a command line into the other words and the values of `--trust`."""
  words, trusted = [], []
  rest = iter(argv)
  for word in rest:
    option, equals, value = word.partition("=")
    if option != "--trust":
      words.append(word)
      continue
    value = value if equals else next(rest, "")
    if not value or value.startswith("-"):
      raise ValueError("--trust needs a module, such as --trust my_reward")
    trusted.append(value)
  return words, trusted


def _stdout_closed() -> bool:
  """Whether stdout is a closed pipe: writing to it fails again."""
  try:
    print(flush=True)
  except BrokenPipeError:
    return True
  return False


def _fail(message: str, code: int = 2) -> int:
  from xpo_jax.data.printable import printable

  print(printable(f"xpo: {message}"), file=sys.stderr)
  return code


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="xpo",
    description="Preference optimisation in JAX: objectives, one trainer, reports.",
    epilog="Anywhere: --debug shows the traceback of an error; --trust MODULE, as "
    "often as needed, lets the files of a run name functions of that module, "
    "--trust PATH.py those of a study that recipe, and --trust URL a judge's server. "
    "Exit codes: 0 done; 2 refused; 75 stopped by SIGTERM or Ctrl-C with a checkpoint, "
    "xpo resume goes on; 130 interrupted at once.",
  )
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  def command(name, run, text, overrides=False):
    sub = commands.add_parser(
      name,
      help=text,
      description=text,
      epilog=_OVERRIDES if overrides else None,
      add_help=not overrides,  # the recipe's own --help lists its fields
      allow_abbrev=False,
    )
    sub.set_defaults(run=run, overrides=overrides, usage=sub.format_help)
    return sub

  command(
    "demo",
    _demo,
    "the controlled-sentiment study on synthetic reviews: table, plot, report",
    True,
  )
  sub = command(
    "compare-objectives",
    _compare,
    "train every objective on pairs; reward at equal KL",
    True,
  )
  sub.add_argument("--run-dir", type=Path, help="new, or of an interrupted comparison")
  command("list", _list, "objectives, the survey's table, recipes, tables")
  sub = command(
    "explain",
    _explain,
    "an objective: equation, paper, hyperparameters, survey section, loss curve",
  )
  sub.add_argument("name", help="name of an objective")

  def with_processes(sub):
    group = sub.add_argument_group("several processes, on one host or on many")
    group.add_argument(
      "--distributed",
      action="store_true",
      help="this is one of several processes, each started with the same command; on "
      "TPU pods, GKE and under Slurm JAX detects the rest",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process-index", type=int, metavar="I", help="0 to N - 1")

  sub = command("train", _train, "run a recipe", True)
  with_processes(sub)
  sub.add_argument("recipe", nargs="?", help="name, path of a .py, or a run")
  sub.add_argument("--run-dir", type=Path, help="new directory; default runs/RECIPE")
  sub = command(
    "check", _check, "validate a recipe, show its budget, train nothing", True
  )
  sub.add_argument("recipe", nargs="?", help="name, path of a .py, or a run")
  sub.add_argument(
    "--topology",
    metavar="SLICE",
    help="compile it for a slice that is not here, at its limits and without data: "
    "v5e:16x16, v5p:4x4x4, v6e:8x8 (the extra tpu-check); h100:64 by arithmetic",
  )
  sub = command(
    "reproduce",
    _reproduce,
    "rebuild papers' tables: claim, intervals over seeds, verdict, figure",
  )
  sub.add_argument("names", nargs="*", metavar="NAME", help="a table, method or paper")
  sub.add_argument("--all", action="store_true", help="every table")
  sub.add_argument("--plan", action="store_true", help="show what would run; run none")
  sub.add_argument(
    "--check", action="store_true", help="fail where a committed verdict does not hold"
  )
  sub.add_argument(
    "--render",
    action="store_true",
    help="write pages anew from the cells there",
  )
  sub.add_argument(
    "--only", nargs="+", metavar="SERIES", help="run the cells of these series alone"
  )
  sub.add_argument("--seeds", type=int, help="in place of each table's number")
  sub.add_argument(
    "--world",
    default="synthetic",
    metavar="WORLD",
    help="synthetic (the exact tables), or the directory of a chat model; smollm2 is "
    "the one that experiments/fetch_smollm2.py makes",
  )
  sub.add_argument(
    "--scale",
    choices=("laptop", "paper"),
    default="laptop",
    help="paper: show the commands of the paper's own experiment, which has not been "
    "run, and start them where the accelerators are; with --plan, show them",
  )
  sub.add_argument(
    "--any-code",
    action="store_true",
    help="run only cells that no code has run; those there keep their commit",
  )
  sub.add_argument("--results", type=Path, metavar="DIR", help="folder of results")
  sub = command("resume", _resume, "continue a run or a study, bit for bit")
  sub.add_argument("run_dir", type=Path, metavar="RUN")
  with_processes(sub)
  sub = command(
    "evaluate", _evaluate, "evaluate a run's policy or reward model on held-out prompts"
  )
  sub.add_argument("run_dir", type=Path, metavar="RUN")
  sub.add_argument(
    "--reward",
    metavar="REWARD",
    help="MODULE:FUNCTION of full texts -> rewards, or a reward model (its run, a "
    "directory, hub:ORG/NAME); such as "
    "xpo_jax.data.synthetic_reviews:true_reward (VADER); without it a run on "
    "rollouts is evaluated by its own feedback",
  )
  sub.add_argument("--prompts", type=int, default=128, help="of a policy")
  sub.add_argument("--completions", type=int, default=4, help="of a policy")
  sub.add_argument("--max-completion-tokens", type=int, help="of a policy")
  sub.add_argument("--seed", type=int, default=0)
  with_processes(sub)
  public = sub.add_mutually_exclusive_group()
  public.add_argument(
    "--tasks",
    metavar="TASK[,TASK]",
    help="run tasks of lm-eval instead (the extra 'lm-eval'); RUN may be a checkpoint",
  )
  public.add_argument(
    "--alpaca-eval",
    type=Path,
    metavar="FILE",
    help="write greedy outputs for AlpacaEval's instructions instead (JSON)",
  )
  public.add_argument(
    "--reward-bench",
    type=Path,
    metavar="FILE",
    help="a reward model's accuracy by subset on pairs instead (JSON lines)",
  )
  sub.add_argument("--limit", type=int, help="documents of each task")
  sub.add_argument("--num-fewshot", type=int, help="examples before each document")
  sub.add_argument(
    "--include-path", type=Path, metavar="DIR", help="tasks of your own (YAML)"
  )
  sub.add_argument(
    "--chat", action="store_true", help="public prompts by the chat template"
  )
  sub = command("generate", _generate, "sample completions from a run or a checkpoint")
  sub.add_argument("directory", type=Path, metavar="RUN", help="or a checkpoint")
  sub.add_argument("prompts", nargs="*", metavar="PROMPT")
  sub.set_defaults(overrides=True)  # prompts after a flag
  sub.add_argument(
    "--chat",
    nargs="*",
    metavar="MESSAGE",
    help="messages of the user, a conversation each; without any, one conversation "
    "with the lines of standard input",
  )
  sub.add_argument(
    "--system", metavar="TEXT", help="message of the system, with --chat"
  )
  sub.add_argument(
    "--chat-file",
    type=Path,
    metavar="FILE",
    help="JSON lines with `messages`, a conversation each; the lines are written with "
    "the reply",
  )
  sub.add_argument(
    "--output", type=Path, metavar="FILE", help="of --chat-file, instead of the screen"
  )
  sub.add_argument(
    "--template-arguments",
    nargs="+",
    metavar="NAME=VALUE",
    help="of the chat template, such as enable_thinking=false",
  )
  sub.add_argument(
    "--chat-template",
    metavar="FILE",
    help="a chat template in place of a checkpoint's; a run has its own",
  )
  sub.add_argument("--completions", type=int, default=1)
  sub.add_argument("--max-completion-tokens", type=int, default=64)
  sub.add_argument("--temperature", type=float, default=1.0)
  sub.add_argument("--top-k", type=int)
  sub.add_argument("--top-p", type=float)
  sub.add_argument("--greedy", action="store_true")
  sub.add_argument("--seed", type=int, default=0)
  sub = command("report", _report, "write report.html and report.md of a run")
  sub.add_argument("run_dir", type=Path, metavar="RUN")
  sub = command(
    "export", _export, "copy a run's policy or reward model to a Hugging Face directory"
  )
  sub.add_argument("run_dir", type=Path, metavar="RUN")
  sub.add_argument("directory", type=Path, metavar="DIR")
  sub.add_argument(
    "--merged",
    action="store_true",
    help="a whole model in float32, the adapter merged into its base; otherwise of "
    "adapters only they are copied, in PEFT's format",
  )
  return parser


def _demo(args, overrides) -> int:
  from xpo_jax.studies import demo

  del args
  return demo.main(overrides)


def _compare(args, overrides) -> int | None:
  from xpo_jax.studies import demo

  demo.environment()  # before JAX is imported
  args.recipe = "compare_objectives"
  return _train(args, overrides)


def _list(args, overrides) -> None:
  from xpo_jax import objectives
  from xpo_jax.studies import find_recipe
  from xpo_jax.studies.atlas import find_tables, worlds
  from xpo_jax.survey import table

  del args, overrides
  pages = {n: (objectives.arxiv(n), objectives.summary(n)) for n in objectives.NAMES}
  _table("objectives", {n: f"{number}  {text}" for n, (number, text) in pages.items()})
  print()
  print(table.render())
  print()
  for kind in ("recipe", "table"):
    files = find_recipe.names(kind).items()
    _table(f"{kind}s", {name: find_recipe.summary(path) for name, path in files})
    print()
  claims = {n: find_recipe.summary(path) for n, path in find_tables.files().items()}
  _table("claims of papers (xpo reproduce)", claims)
  print()
  files = find_tables.files(worlds.CHAT_MODEL).items()
  claims = {name: find_recipe.summary(path) for name, path in files}
  _table("claims on a chat model (xpo reproduce --world smollm2)", claims)


def _table(title: str, rows: dict[str, str]) -> None:
  width = max(map(len, rows), default=0)
  print(title)
  for name, text in rows.items():
    print(f"  {name:{width}}  {text}")


def _explain(args, overrides) -> None:
  from xpo_jax.studies import find_recipe
  from xpo_jax.survey import explain

  del overrides
  print(explain.page(args.name, find_recipe.using(args.name)))


def _recipe(args, overrides):
  if args.recipe is None and {"-h", "--help"} & set(overrides):
    print(args.usage())
    raise SystemExit(0)
  if args.recipe is None:
    raise ValueError(f"xpo {args.command} RECIPE: name one (xpo list); {_OVERRIDES}")
  from xpo_jax.studies import find_recipe

  prog = f"xpo {args.command} {args.recipe}"
  if find_recipe.is_objective(args.recipe, overrides):
    from xpo_jax.studies import objective_recipe

    experiment = objective_recipe.experiment(args.recipe, overrides, prog)
    return find_recipe.Recipe(experiment)
  return find_recipe.configured(args.recipe, overrides, prog)


def _train(args, overrides) -> int | None:
  recipe = _recipe(args, overrides)
  from xpo_jax.studies import find_recipe

  name = find_recipe.run_of(args.recipe) or Path(args.recipe).with_suffix("")
  run_dir = args.run_dir or Path("runs") / name.name
  if recipe.run is not None:
    return _run_study(recipe, run_dir)
  from xpo_jax.train import loop

  result = loop.train(recipe.experiment, run_dir)
  _write_report(result.run_dir)
  return 0 if result.finished else UNFINISHED


def _write_report(run_dir: Path) -> None:
  from xpo_jax.report import run_page
  from xpo_jax.sharding import distributed

  path = distributed.on_first(lambda: str(run_page.write(run_dir)))
  if distributed.is_first():
    print(f"report: {path}")


def _run_study(study, run_dir: Path) -> int:
  from xpo_jax.sharding import distributed
  from xpo_jax.train import progress, run_directory

  if distributed.is_initialized():
    raise ValueError(
      "--distributed is of a single run, and this is a study of several; start it "
      "without, or train its runs by themselves"
    )
  with run_directory.lock_study(run_dir, progress.say):
    return study.run(study.experiment, run_dir)


def _check_topology(args, recipe) -> int:
  if recipe.run is not None:
    raise ValueError(
      f"{args.recipe} is a study of many runs; --topology takes the recipe of one"
    )
  from xpo_jax.topology import check

  report = check.check(recipe.experiment, args.topology)
  print("\n".join(check.lines(report)))
  return 0 if report.fits else 2


def _check(args, overrides) -> int | None:
  try:
    recipe = _recipe(args, overrides)
  except trust.ForeignCode as error:
    # Reading what somebody else's run names needs no trust; building it does.
    from xpo_jax.train.progress import say

    for where, name, _ in error.names:
      say(f"{where} names {name!r}, which is not trusted: not imported")
    again = shlex.join(["xpo", "check", args.recipe, *overrides])
    say(
      "nothing was built, read or checked; if you know that code: "
      f"{again} {error.options}"
    )
    return None
  if args.topology is not None:
    return _check_topology(args, recipe)
  from xpo_jax.train import preflight

  if recipe.run is None:
    experiments = [recipe.experiment]
  elif recipe.arms is None:
    print(
      f"{args.recipe}: the settings are sound; its runs are not listed, not checked"
    )
    return None
  else:
    experiments = list(recipe.arms(recipe.experiment).values())
  for budget in preflight.check(*experiments):
    print("\n".join(preflight.lines(budget)))
  print("nothing wrong found; nothing was trained")
  return None


def _reproduce(args, overrides) -> int:
  from xpo_jax.studies import demo

  del overrides
  demo.environment()  # before JAX is imported
  from xpo_jax.studies.atlas import reproduce

  return reproduce.main(args)


def _resume(args, overrides) -> int | None:
  from xpo_jax.config import yaml_file
  from xpo_jax.studies import find_recipe

  del overrides
  if not (args.run_dir / yaml_file.FILE).exists():
    return _run_study(find_recipe.load_study(args.run_dir), args.run_dir)
  from xpo_jax.train import loop

  result = loop.resume(args.run_dir)
  _write_report(result.run_dir)
  return 0 if result.finished else UNFINISHED


def _evaluate(args, overrides) -> None:
  from xpo_jax.evaluation import evaluate_reward_model, evaluate_run

  del overrides
  if _evaluate_publicly(args):
    return
  reward = None if args.reward is None else _reward(args.reward)
  if evaluate_reward_model.is_reward(args.run_dir):
    if reward is not None:
      raise ValueError(
        f"--reward {args.reward}: {args.run_dir} is a reward model, which is compared "
        "with held-out labels and not with another reward; leave the flag out"
      )
    agreed = evaluate_reward_model.judge_run(args.run_dir, seed=args.seed)
    rows = {name: str(interval) for name, interval in agreed.measures.items()}
    rows["calibration_error"] = f"{agreed.calibration_error:.3f}"
    title = "agreement with held-out labels, mean [95 % interval over prompts]"
    _show_evaluation(title, rows, args.run_dir)
    return
  evaluated = evaluate_run.evaluate_run(
    args.run_dir,
    reward=reward,
    prompts=args.prompts,
    completions=args.completions,
    max_completion_tokens=args.max_completion_tokens,
    seed=args.seed,
  )
  rows = {name: str(interval) for name, interval in evaluated.measures.items()}
  _show_evaluation("policy, mean [95 % interval over prompts]", rows, args.run_dir)


def _show_evaluation(title: str, rows: dict[str, str], run_dir: Path) -> None:
  from xpo_jax.sharding import distributed

  if distributed.is_first():
    _table(title, rows)
  _write_report(run_dir)


def _reward(name: str):
  """What judges completions: a reward model by its run or directory, or a function of
  full texts."""
  from xpo_jax.data import imports
  from xpo_jax.data.formats import hub
  from xpo_jax.evaluation import checkpoint_win_rates, evaluate_run
  from xpo_jax.feedback import reward_model

  if Path(name).is_dir() or name.startswith(hub.PREFIX):
    local = not name.startswith(hub.PREFIX)
    directory = evaluate_run.policy_dir(name) if local else name
    scorer = reward_model.scorer(str(directory))
    return checkpoint_win_rates.RunJudge(name, scorer=scorer)
  trust.allow_used(name)
  return imports.function(name, "reward function")


def _evaluate_publicly(args) -> bool:
  """Evaluates by the conventions of a public benchmark, if one is named."""
  of_tasks = ("limit", "num_fewshot", "include_path")
  given = [name for name in of_tasks if getattr(args, name) is not None]
  if args.tasks is None and given:
    raise ValueError(f"--{given[0].replace('_', '-')} is of --tasks: name some")
  named = args.tasks or args.alpaca_eval or args.reward_bench
  if named and args.distributed:
    raise ValueError("--distributed: a public benchmark is run by one process")
  if args.chat and not named:
    raise ValueError("--chat is of --tasks, --alpaca-eval and --reward-bench")
  if named and args.reward is not None:
    raise ValueError(f"--reward {args.reward}: a public benchmark takes no reward")
  if args.tasks is not None:
    from xpo_jax.evaluation import lm_eval

    options = {name: getattr(args, name) for name in (*of_tasks, "chat")}
    results = lm_eval.evaluate(args.run_dir, args.tasks.split(","), **options)
    for task, values in results.items():
      # "metric,filter"; the rest are names and counts.
      _table(task, {name: str(x) for name, x in values.items() if "," in name})
  elif args.alpaca_eval is not None:
    from xpo_jax.evaluation import alpaca_eval
    from xpo_jax.models.generation_config import GenerationConfig

    if args.max_completion_tokens is None:
      raise ValueError("--alpaca-eval needs --max-completion-tokens, such as 2048")
    path = args.run_dir / alpaca_eval.FILE
    config = GenerationConfig(args.max_completion_tokens, greedy=True)
    cut = alpaca_eval.write(
      args.run_dir, args.alpaca_eval, path, config, chat=args.chat, seed=args.seed
    )
    print(f"{path}: {cut} outputs were cut at {config.max_completion_tokens} tokens")
  elif args.reward_bench is not None:
    from xpo_jax.evaluation import reward_bench

    accuracy = reward_bench.evaluate(args.run_dir, args.reward_bench, chat=args.chat)
    rows = {name: str(interval) for name, interval in accuracy.items()}
    _table("accuracy, mean [95 % interval over prompts]", rows)
  return bool(named)


def _generate(args, overrides) -> None:
  from xpo_jax.config import command_line
  from xpo_jax.data import sealed_files
  from xpo_jax.data.printable import printable
  from xpo_jax.data.records import Turn
  from xpo_jax.evaluation import conversations, evaluate_run
  from xpo_jax.models.generation_config import GenerationConfig

  config = GenerationConfig(
    args.max_completion_tokens,
    args.completions,
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
    greedy=args.greedy,
  )
  prompts = [*args.prompts, *overrides]
  _check_generate(args, prompts)
  asked = args.chat_file and conversations.read(args.chat_file)
  words = args.template_arguments or []
  sample = evaluate_run.sampler(
    args.directory,
    chat_template=args.chat_template,
    arguments=command_line.mapping("--template-arguments", words),
  )
  if asked is not None:
    lines = conversations.answer(sample, asked, config, args.seed)
    if args.output is None:
      print("\n".join(map(printable, lines)))
    else:
      sealed_files.write_text(args.output, "\n".join(lines) + "\n")
      print(f"{args.output}: {len(lines):,} lines")
    return None
  first = () if args.system is None else (Turn("system", args.system),)
  if args.chat == []:
    return _converse(sample, first, config, args.seed)
  if args.chat:
    prompts = [(*first, Turn("user", text)) for text in args.chat]
  for prompt, texts in zip(prompts, sample(prompts, config, args.seed), strict=True):
    for text in texts:
      print(printable(text if args.chat else f"{prompt}|{text}"))
  return None


def _check_generate(args, prompts: Sequence[str]) -> None:
  """Refuses prompts and flags of `xpo generate` that do not go together."""
  if unknown := [word for word in prompts if word.startswith("-")]:
    raise ValueError(f"xpo generate does not know {unknown[0]}; see its --help")
  if args.system is not None and args.chat is None:
    raise ValueError(f"--system {args.system!r} is of a conversation: add --chat")
  kinds = (bool(prompts), args.chat is not None, args.chat_file is not None)
  if sum(kinds) != 1:
    raise ValueError(
      "xpo generate needs a PROMPT, or --chat for messages, or --chat-file: one of them"
    )
  of_chat = args.template_arguments or args.chat_template
  if prompts and of_chat:
    raise ValueError(
      "--template-arguments and --chat-template are of messages, and a PROMPT is read "
      "by no chat template: use --chat"
    )
  if args.output is not None and args.chat_file is None:
    raise ValueError(f"--output {args.output} is of --chat-file: add it")
  if args.output is not None and args.output.exists():
    raise ValueError(f"--output {args.output} exists; name a file that does not")


def _converse(sample, turns, config, seed: int) -> None:
  """Answers each line of standard input, which continues the conversation."""
  from xpo_jax.data.printable import printable
  from xpo_jax.data.records import Turn

  if config.completions != 1:
    raise ValueError(
      f"--completions {config.completions}: a conversation goes on with one"
    )
  if sys.stdin.isatty():
    print("an empty line ends the conversation", file=sys.stderr)
  for line in sys.stdin:
    if not line.strip():
      break
    turns = (*turns, Turn("user", line.strip()))
    ((text,),) = sample([turns], config, seed + len(turns))
    print(printable(text), flush=True)
    turns = (*turns, Turn("assistant", text))


def _report(args, overrides) -> None:
  from xpo_jax.report import run_page

  del overrides
  print(run_page.write(args.run_dir))


def _export(args, overrides) -> None:
  from xpo_jax.evaluation import evaluate_run

  del overrides
  print(evaluate_run.export(args.run_dir, args.directory, merged=args.merged))


if __name__ == "__main__":
  sys.exit(main())
