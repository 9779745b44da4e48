"""Training and decoding on a machine with a GPU, against Hugging Face, within eight minutes.

python benchmarks/on_gpu.py --data-dir CQA --vocabulary FILE.model [--task cqa]
    [--students base large] [--minutes 8]

Runs, each as a command of its own and as long as time is left:

train_step_vs_torch.py --dtype bfloat16 for each student;
decode_vs_torch.py for the first student, with float32 and with bfloat16 weights.

Prints one line of JSON: the figures of each by name, what was left out for lack of time or failed,
and of training the share of the GPU's published bfloat16 rate (mfu) of both programs, where it is
known. Needs PyTorch and transformers for the same GPU: pip install -e '.[torch]', jax[cuda12].
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
# Dense bfloat16 operations per second by NVIDIA's data sheets (SXM where there are several).
PEAK_FLOPS = {
  "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
}  # fmt: skip
# A command that needs longer than this has failed.
MOST_SECONDS = 240


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--data-dir", required=True)
  parser.add_argument("--vocabulary", required=True)
  parser.add_argument("--task", default="cqa")
  parser.add_argument("--students", nargs="+", default=["base", "large"])
  parser.add_argument("--minutes", type=float, default=8.0)
  parser.add_argument("--repeats", type=int, default=3)
  arguments = parser.parse_args()
  end = time.monotonic() + 60 * arguments.minutes
  common = ["--data-dir", arguments.data_dir, "--vocabulary", arguments.vocabulary]
  common += ["--task", arguments.task, "--repeats", str(arguments.repeats)]
  commands = {
    f"train_{student}": ["train_step_vs_torch.py", "--student", student, "--dtype", "bfloat16"]
    for student in arguments.students
  }
  for weights in ("float32", "bfloat16"):
    command = ["decode_vs_torch.py", "--student", arguments.students[0], "--weights", weights]
    commands[f"decode_{arguments.students[0]}_{weights}"] = command
  results: dict[str, Any] = {}
  for name, command in commands.items():
    results[name] = measured([*command, *common], end - time.monotonic())
  print(json.dumps(results))


def measured(command: list[str], seconds_left: float) -> dict[str, Any]:
  """Runs a benchmark and returns its figures, or why there are none."""
  if seconds_left < 20:
    return {"left_out": "no time was left"}
  # Both programs of a benchmark are on the device at once.
  env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  limit = min(seconds_left, MOST_SECONDS)
  try:
    result = subprocess.run(
      [sys.executable, str(HERE / command[0]), *command[1:]],
      env=env,
      capture_output=True,
      text=True,
      timeout=limit,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {"failed": f"not complete within {limit:.0f} s"}
  if result.returncode:
    return {"failed": result.stderr.strip().splitlines()[-1:]}
  figures = json.loads(result.stdout.splitlines()[-1])
  peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in figures["machine"]), None)
  if peak is not None and "real_tflops_per_s" in figures:
    rates = figures["real_tflops_per_s"]
    figures["mfu"] = {name: round(rate * 1e12 / peak, 4) for name, rate in rates.items()}
  return figures


if __name__ == "__main__":
  main()
