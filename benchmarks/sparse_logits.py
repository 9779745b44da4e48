"""What a student loses when its teacher's next tokens are stored, and not computed.

python benchmarks/sparse_logits.py --folder runs/sparse [--steps 80] [--counts 8 32 128]

Makes the quickstart's rows and vocabulary, trains a teacher on many of them, and a student on few,
from the teacher's next tokens beside the cross-entropies: computed in the step, then from files of
the K likeliest words (top-k) and of K draws. Prints a Markdown table: bytes a token; of a batch,
how far the response's loss and gradient are from those of the whole distribution; and the student's
exact match on held-out rows. The gradient of one file of draws has noise, so that of the mean over
--seeds files stands beside it, with its standard error. Started again, it goes on.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig, SignalConfig
from dss_jax.data.batches import BatchLayout, TrainBatches
from dss_jax.data.pipeline import PreparedData, prepare
from dss_jax.data.records import write_rows
from dss_jax.losses.kinds import training_objective
from dss_jax.model.flops import forward_flops
from dss_jax.parallel.mesh import make_mesh
from dss_jax.pipelines import distill, quickstart_data
from dss_jax.pipelines.annotate_logits import Kept
from dss_jax.pipelines.annotate_logits import run as annotate
from dss_jax.storage.cache import keep_compiled_programs
from dss_jax.student.predictor import Predictor
from dss_jax.student.student import Student
from dss_jax.student.teacher_model import TeacherModel
from dss_jax.teachers.logit_files import read_meta
from dss_jax.teachers.logit_store import LogitStore
from dss_jax.train.step import accumulated_gradient

TEACHER_ROWS, TRAIN_ROWS, TEST_ROWS = 1000, 100, 400
BATCH_SIZE = 24


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", required=True, type=pathlib.Path)
  parser.add_argument("--steps", type=int, default=80)
  parser.add_argument("--teacher-steps", type=int, default=300)
  parser.add_argument("--counts", type=int, nargs="+", default=[8, 32, 128])
  parser.add_argument("--seeds", type=int, default=4)
  arguments = parser.parse_args()
  keep_compiled_programs()
  Comparison(arguments).run()


class Comparison:
  """The runs of the comparison, each in its own folder, which is used again if it is there."""

  def __init__(self, arguments: argparse.Namespace):
    self._arguments = arguments
    self._folder = arguments.folder
    self._folder.mkdir(parents=True, exist_ok=True)
    rows = quickstart_data.make_rows(0, TEST_ROWS + TEACHER_ROWS)
    self._test, training = rows[:TEST_ROWS], rows[TEST_ROWS:]
    write_rows(self._folder / "teacher.jsonl", training)
    # Not among the teacher's rows' first ones alone: the student sees some of them.
    write_rows(self._folder / "train.jsonl", training[:TRAIN_ROWS])
    quickstart_data.write_vocabulary(self._folder / "vocabulary.model", training)

  def run(self) -> None:
    steps = self._arguments.teacher_steps
    self._train("teacher", {"DATASET": self._at("teacher.jsonl"), "TRAIN_STEPS": steps})
    results = {"teacher": {"accuracy": self._accuracy("teacher")}}
    self._train("alone", {})
    results["no teacher"] = {"accuracy": self._accuracy("alone")}
    teacher = {"SignalConfig.model": self._at("teacher")}
    self._train("online", {**teacher, "LossConfig.extra_terms": {"response": 1.0}})
    results["in the step"] = {"accuracy": self._accuracy("online")}
    print(json.dumps(results), flush=True)
    dense = self._gradient(None)
    stored = {}
    for mode in ("top_k", "draws"):
      for count in self._arguments.counts:
        name = f"{mode}-{count}"
        kept = dataclasses.replace(Kept(None, None, 1.0), **{mode: count})
        logits = stored[name] = self._annotate(name, kept, seed=0)
        results[name] = {
          "bytes": read_meta(logits).bytes_per_token,
          **_errors(dense, [self._gradient(logits)]),
          **(self._bias(dense, kept, name) if mode == "draws" else {}),
        }
        print(json.dumps({name: results[name]}), flush=True)
    for name, logits in stored.items():
      extra = {"SignalConfig.logits": logits, "LossConfig.extra_terms": {"response": 1.0}}
      self._train(f"student-{name}", extra)
      results[name]["accuracy"] = self._accuracy(f"student-{name}")
      print(json.dumps({name: results[name]}), flush=True)
    print(_table(results))

  def _at(self, name: str) -> str:
    return str(self._folder / name)

  def _config(self, name: str, values: dict[str, Any]) -> RunConfig:
    bindings = {
      "MODEL_DIR": self._at(name),
      "DATASET": self._at("train.jsonl"),
      "VOCABULARY": self._at("vocabulary.model"),
      "TRAIN_STEPS": self._arguments.steps,
      "BATCH_SIZE": BATCH_SIZE,
      "MeshConfig.data": 1,
      **values,
    }
    return load_config(
      RunConfig,
      ["runs/quickstart.gin"],
      [Binding(key, value, "sparse_logits") for key, value in bindings.items()],
    )

  def _train(self, name: str, values: dict[str, Any]) -> None:
    distill.run(self._config(name, values))

  def _annotate(self, name: str, kept: Kept, seed: int) -> str:
    output = self._at(f"logits-{name}-{seed}")
    values = {"SEED": seed, "SignalConfig.model": self._at("teacher")}
    annotate(self._config(name, values), output, kept)
    return output

  def _accuracy(self, name: str) -> float:
    """Returns a student's exact match on the test rows, in percent."""
    student = Student.open(self._at(name))
    predictor = Predictor(student, make_mesh(MeshConfig(data=1), 100), batch_size=100)
    answers = predictor.answers([row["input_text"] for row in self._test], "label")
    right = [row["output_text"] == text for row, text in zip(self._test, answers, strict=True)]
    return 100 * sum(right) / len(right)

  @functools.cached_property
  def _data(self) -> PreparedData:
    return prepare(self._config("alone", {}).data, (0, 1))

  @functools.cached_property
  def _params(self) -> Any:
    """The weights at which gradients are compared: those of the student without a teacher."""
    return Student.open(self._at("alone")).params(make_mesh(MeshConfig(data=1), BATCH_SIZE))

  def _gradient(self, logits: str | None) -> tuple[float, np.ndarray]:
    """Returns the response's loss and gradient of the first batch: from a file, or the teacher."""
    values = {"LossConfig.extra_terms": {"response": 1.0}, "LossConfig.cross_entropy_weight": 0.0}
    config = self._config("alone", values)
    config = dataclasses.replace(config, model=Student.open(self._at("alone")).config.model)
    mesh = make_mesh(config.mesh, BATCH_SIZE)
    if logits is None:
      features, source = (), "teacher"
      signals = SignalConfig(model=self._at("teacher"))
      config = dataclasses.replace(config, signals=signals)
      teacher = TeacherModel(config, self._data.vocabulary)
      network = teacher.network(mesh)
      teacher.load(network)
      layers: dict[str, tuple[int, ...]] = {"encoder": (), "decoder": ()}
      signal_of = functools.partial(_outputs, network, layers)
    else:
      config = dataclasses.replace(config, signals=SignalConfig(logits=logits))
      train, vocabulary = self._data.train, self._data.vocabulary
      store = LogitStore(logits, read_meta(logits), train, vocabulary, config.data)
      features, source, signal_of = store.features, "file", store.signal
    batches = TrainBatches(
      self._data.train,
      batch_size=BATCH_SIZE,
      seed=0,
      kinds=(0, 1),
      costs=forward_flops(config.model).of_rows,
      layout=BatchLayout(features=features),
    )
    batch = batches.packed.fill(*batches.pack(0))
    objective = training_objective(config)

    @jax.jit
    def of(params, batch):
      return accumulated_gradient(
        params,
        batch,
        None,
        config=config,
        objective=objective,
        signals_of=lambda rows: {source: signal_of(rows)},
      )

    with jax.set_mesh(mesh):
      gradient, sums = of(self._params, batch)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
    return float(objective.total(sums)), flat

  def _bias(self, dense: tuple[float, np.ndarray], kept: Kept, name: str) -> dict[str, float]:
    """Returns the errors of the mean of several files of draws, with the standard error."""
    seeds = range(1, self._arguments.seeds + 1)
    found = [self._gradient(self._annotate(name, kept, seed)) for seed in seeds]
    return {f"mean_{key}": value for key, value in _errors(dense, found).items()}


def _outputs(network, layers, rows):
  return network.outputs(network.params, rows, layers)


def _errors(
  dense: tuple[float, np.ndarray], found: list[tuple[float, np.ndarray]]
) -> dict[str, float]:
  """Returns how far the mean loss and the mean gradient are from the whole distribution's."""
  losses, gradients = np.array([loss for loss, _ in found]), np.stack([each for _, each in found])
  size = float(optax.tree.norm(dense[1]))
  errors = {
    "loss": float(losses.mean() - dense[0]),
    "gradient": float(np.linalg.norm(gradients.mean(axis=0) - dense[1])) / size,
  }
  if len(found) > 1:
    variances = gradients.var(axis=0, ddof=1) / len(found)
    errors["standard_error"] = float(np.sqrt(variances.sum())) / size
    errors["loss_standard_error"] = float(losses.std(ddof=1) / np.sqrt(len(found)))
  return errors


def _table(results: dict[str, dict[str, float]]) -> str:
  lines = [
    "| next tokens | bytes a token | loss | gradient | mean gradient of draws | exact match |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for name, figures in results.items():
    cells = [name, *("" for _ in range(4)), f"{figures['accuracy']:.1f} %"]
    if "bytes" in figures:
      cells[1:4] = [
        f"{figures['bytes']:.1f}", f"{figures['loss']:+.4f}", f"{100 * figures['gradient']:.1f} %"
      ]  # fmt: skip
    if "mean_gradient" in figures:
      error = 100 * figures["mean_standard_error"]
      cells[4] = f"{100 * figures['mean_gradient']:.1f} % (standard error {error:.1f} %)"
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
