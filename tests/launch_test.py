"""Launch files start `xpo` on every host: dry runs with recorded commands."""

import itertools
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from xpo_jax import cli

LAUNCH = Path(__file__).parent.parent / "experiments" / "launch"
# Outside commands, with the flags that the files may give them.
_FLAGS = {
  "gcloud": {
    *("--zone", "--worker", "--command", "--accelerator-type", "--version"),
    *("--recurse", "--quiet"),
  },
  "xpk": {
    *("--cluster", "--tpu-type", "--num-slices", "--workload", "--docker-image"),
    *("--max-restarts", "--restart-on-exit-codes", "--command"),
  },
}
_RECIPE = ["dpo", "path=my file.jsonl", "--data.epochs", "2"]
_ENVIRONMENT = {
  "TPU_NAME": "slice",
  "ZONE": "a",
  "ACCELERATOR_TYPE": "v5litepod-32",
  "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
  "CLUSTER": "c",
  "TPU_TYPE": "v5litepod-32",
  "SLICES": "2",
  "IMAGE": "image",
  "SLURM_JOB_ID": "7",
}


@pytest.fixture
def dry(tmp_path):
  """Runs a command with recording stand-ins of all outside ones; their words."""
  stand_ins = tmp_path / "bin"
  stand_ins.mkdir()
  for name in ("gcloud", "xpk", "xpo", "pip", "srun", "scontrol"):
    path = stand_ins / name
    end = 'exec "$@"' if name == "srun" else f"exit ${{{name.upper()}_CODE:-0}}"
    record = f'printf "%s\\n" {name} "$@" "" >> {tmp_path / "log"}'
    path.write_text(f"#!/usr/bin/env bash\n{record}\n{end}\n")
    path.chmod(0o755)

  def run(*words, code=0, **environment):
    (tmp_path / "log").unlink(missing_ok=True)
    env = os.environ | _ENVIRONMENT | environment
    env["PATH"] = f"{stand_ins}:{env['PATH']}"
    cwd = LAUNCH.parent.parent
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if not (tmp_path / "log").exists():
      return []
    lines = (tmp_path / "log").read_text().split("\n")
    groups = itertools.groupby(lines, key=bool)
    return [list(group) for there, group in groups if there]

  return run


def _parsed(words):
  """The arguments of an xpo command, which must be known, and the recipe's."""
  assert words[0] == "xpo"
  args, overrides = cli._parser().parse_known_args(words[1:])
  assert args.distributed
  return args, overrides


def _check_flags(words):
  for word in words:
    if word.startswith("--"):
      assert word.partition("=")[0] in _FLAGS[words[0]]


def test_run_is_started_once_and_then_gone_on_with(dry, tmp_path):
  run_dir = tmp_path / "a run"
  script = str(LAUNCH / "start_or_resume.sh")
  flags = "--coordinator h:1 --processes 2 --process-index 1"
  (words,) = dry(script, str(run_dir), *_RECIPE, PROCESS_FLAGS=flags)
  args, overrides = _parsed(words)
  assert (args.command, args.run_dir, args.recipe) == ("train", run_dir, "dpo")
  assert overrides == _RECIPE[1:]
  assert (args.coordinator, args.processes, args.process_index) == ("h:1", 2, 1)
  run_dir.mkdir()
  (run_dir / "config.yaml").touch()
  (words,) = dry(script, str(run_dir), *_RECIPE)
  args, overrides = _parsed(words)
  assert (args.command, args.run_dir, overrides) == ("resume", run_dir, [])
  assert args.coordinator is None


@pytest.mark.parametrize("action", ["create", "install", "stop", "delete"])
def test_slice_is_made_with_the_commands_of_gcloud(dry, action):
  for words in dry(str(LAUNCH / "tpu_pod.sh"), action):
    assert words[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
    assert "slice" in words[5] or "slice:xpo_jax" in words
    _check_flags(words)


def test_every_host_of_a_slice_runs_the_recipe(dry, tmp_path):
  run = [str(tmp_path / "run"), *_RECIPE]
  (words,) = dry(str(LAUNCH / "tpu_pod.sh"), "run", *run)
  _check_flags(words)
  assert "--worker=all" in words
  command = words[-1].removeprefix("--command=")
  assert command.startswith("cd xpo_jax && experiments/launch/start_or_resume.sh ")
  inner = shlex.split(command)[3:]
  assert (LAUNCH.parent.parent / inner[0]).exists() and inner[1:] == run
  (words,) = dry(*inner)
  assert _parsed(words)[1] == _RECIPE[1:]


def test_workload_of_xpk_runs_the_recipe(dry, tmp_path):
  run = [str(tmp_path / "run"), *_RECIPE]
  for action in (["create"], ["delete", "w"]):
    (words,) = dry(str(LAUNCH / "xpk.sh"), *action)
    _check_flags(words)
  (words,) = dry(str(LAUNCH / "xpk.sh"), "run", "w", *run)
  _check_flags(words)
  assert "--workload=w" in words and "--docker-image=image" in words
  inner = shlex.split(words[-1].removeprefix("--command="))[3:]
  (words,) = dry(*inner)
  assert _parsed(words)[1] == _RECIPE[1:]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "xpk.sh"])
def test_unknown_action_is_refused(dry, script):
  assert dry(str(LAUNCH / script), "fly", code=2) == []


def test_nodes_of_skypilot_are_numbered_processes(dry, tmp_path):
  task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
  assert task["num_nodes"] == 2 and set(task["envs"]) == {"RUN", "RECIPE", "ARGUMENTS"}
  own = {
    "RUN": str(tmp_path / "run"),
    "RECIPE": "dpo",
    "ARGUMENTS": "path=a.jsonl --data.epochs 2",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
  }
  (words,) = dry("bash", "-c", task["run"], **own)
  args, overrides = _parsed(words)
  assert (args.coordinator, args.processes, args.process_index) == (
    "10.0.0.1:8476",
    2,
    1,
  )
  assert overrides == ["path=a.jsonl", "--data.epochs", "2"]
  ((pip, *_),) = dry("bash", "-c", task["setup"])
  assert pip == "pip"


def test_job_of_slurm_is_queued_again_only_where_it_was_stopped(dry, tmp_path):
  script, run = str(LAUNCH / "slurm.sbatch"), [str(tmp_path / "run"), *_RECIPE]
  srun, xpo = dry("bash", script, *run)
  assert srun[0] == "srun" and _parsed(xpo)[1] == _RECIPE[1:]
  *_, last = dry("bash", script, *run, code=75, XPO_CODE="75")
  assert last == ["scontrol", "requeue", "7"]
  assert len(dry("bash", script, *run, code=2, XPO_CODE="2")) == 2
