"""One training run, from a configuration to a student on disk.

With several processes (parallel/processes.py), each reads the rows, fills its own devices' shards
and takes every step. Only process 0 asks a teacher and writes to MODEL_DIR, apart from
checkpoints, which all processes save together.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dss_jax.config.schema import RunConfig, flatten
from dss_jax.data.batches import BatchLayout, EvalBatches, TrainBatches
from dss_jax.data.on_policy import OnPolicyBatches
from dss_jax.data.packing import aligned_tokens
from dss_jax.data.pipeline import PreparedData, prepare
from dss_jax.data.shared_encoder import check_shared_encoder, shared_starts
from dss_jax.losses.kinds import check_signals, compares_examples, make_objective
from dss_jax.model.flops import forward_flops
from dss_jax.parallel import processes
from dss_jax.parallel.mesh import make_mesh
from dss_jax.pipelines.annotate_stage import annotate_training_rows
from dss_jax.progress import say
from dss_jax.student import model_dir as students
from dss_jax.student.initialise import InitialCheckpoint, check_initial_settings, resumed
from dss_jax.student.registration import register_student
from dss_jax.student.registry import Registry
from dss_jax.student.teacher_model import TeacherModel
from dss_jax.teachers.logit_files import read_meta
from dss_jax.teachers.logit_store import LogitStore, check_model, check_run
from dss_jax.train.loop import Loop, Outcome
from dss_jax.train.on_policy import OnPolicy, check_on_policy, max_tokens, sampled_kinds
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer, parameter_count

# The shapes of this many steps are compiled in advance; others when they first occur.
_STEPS_AHEAD = 64


def run(config: RunConfig) -> dict[str, Any]:
  """Trains the student, or resumes its training; returns its model.json.

  With a display name, the student is registered when the run ends, unless it is already, and
  the result also has `registered`: NAME@VERSION.

  User errors are raised before anything is written to MODEL_DIR.
  """
  _agree_on_config(config)
  check_initial_settings(config)
  check_shared_encoder(config)
  if config.display_name is not None:
    processes.broadcast("display name", lambda: _check_name(config))
  mesh = make_mesh(config.mesh, config.batch_size)
  students.check_directory(config)
  kinds = make_objective(config.loss).kinds
  check_on_policy(config)
  check_signals(config)
  logits = None if config.signals.logits is None else read_meta(config.signals.logits)
  if logits is not None:
    check_run(logits, config)
    processes.agree(
      "the processes have read different next tokens",
      {"--teacher-logits": logits.digest[:8]},
      "give every one the same folder",
    )
  # Only process 0 asks the teacher, so that each request is sent once.
  annotated, annotation = processes.broadcast("annotated", lambda: annotate_training_rows(config))
  by_agreement = config.loss.agreement_weights
  data = processes.first_process_first(
    "tokens", lambda: prepare(config.data, kinds, annotated, agreement_weights=by_agreement)
  )
  _agree_on_data(config, data)
  if annotation is not None:
    data.report["annotation"] = annotation
  file = None
  if logits is not None and config.signals.logits is not None:
    file = LogitStore(config.signals.logits, logits, data.train, data.vocabulary, config.data)
  teacher = None
  if config.signals.model is not None:
    teacher = TeacherModel(config, data.vocabulary)
  initial = None
  if config.initial_checkpoint is not None:
    if processes.broadcast("begun", lambda: students.has_begun_training(config)):
      config = resumed(config, students.stored_config(config))
    else:
      initial = InitialCheckpoint(config, data.vocabulary)
      config = initial.config
      for note in initial.notes:
        say(note)
  config = students.with_vocab_size(config, data.vocabulary)
  if logits is not None:
    check_model(logits, config)
  students.check_directory(config)
  network = None if teacher is None else teacher.network(mesh)
  optimizer = make_optimizer(config.optimizer, config.train_steps)
  trainer = Trainer(config, optimizer, mesh, network, file)
  layers = None if initial is None else initial.layers
  initial_states = [] if initial is None else [initial.state(trainer)]
  batches = _Batches.of(config, data, mesh, kinds, file)
  on_policy = None
  if batches.on_policy is not None:
    vocabulary = data.vocabulary
    on_policy = OnPolicy(
      config, trainer, batches.on_policy, eos_id=vocabulary.eos_id, pad_id=vocabulary.pad_id
    )
  digest = logits.digest if logits is not None else None if teacher is None else teacher.digest
  with _model_dir(config) as directory:
    card = processes.broadcast("card", lambda: students.begin(config, data, digest, layers))
    if processes.broadcast("finished", lambda: students.is_finished(config, card)):
      say(f"{config.model_dir} is finished: {_end(card)}; nothing is left to do")
      return _registered(config, card)
    if teacher is not None and network is not None:
      teacher.load(network)

    def on_start(step: int) -> None:
      # Written only now, so that a run whose checkpoint cannot be read is left unchanged.
      if processes.is_first():
        students.write_config(config)
      _announce(config, data, trainer, batches.train, step)
      coming = range(step, min(step + _STEPS_AHEAD, config.train_steps))
      trainer.compile_ahead(
        batches.train.shapes(n for n in coming if on_policy is None or not on_policy.takes(n)),
        [] if batches.evaluation is None else batches.evaluation.shapes(),
      )

    loop = Loop(config, trainer, batches.train, batches.evaluation, on_policy)
    # pop, because a reference kept here would keep the initial state in memory.
    try:
      outcome = loop.run(initial_states.pop if initial_states else None, on_start)
    finally:
      trainer.stop_compiling()
    card = _finished(card, outcome)
    if processes.is_first():
      students.write_card(directory, card)
    say(f"finished: {_end(card)}")
    return _registered(config, card)


class _Batches(NamedTuple):
  """The batches of a run: None for evaluation data and sampled targets that it does not have."""

  train: TrainBatches
  evaluation: EvalBatches | None
  on_policy: OnPolicyBatches | None

  @classmethod
  def of(
    cls,
    config: RunConfig,
    data: PreparedData,
    mesh: Mesh,
    kinds: tuple[int, ...],
    file: LogitStore | None,
  ) -> "_Batches":
    """Plans the batches.

    Args:
      kinds: the target kinds that the run is trained on.
      file: a teacher's next tokens that the batches carry.
    """
    rows: Any = {
      "costs": forward_flops(config.model).of_rows,
      "row_multiple": mesh.shape["data"] * config.accumulation_steps,
      "length_multiple": aligned_tokens(config.model.dtype),
    }
    starts = shared_starts(config.data, data.vocabulary)
    train = TrainBatches(
      data.train,
      batch_size=config.batch_size,
      seed=config.seed,
      kinds=kinds,
      example_weights=data.train.example_weights,
      layout=BatchLayout(starts, compares_examples(config), () if file is None else file.features),
      **rows,
    )
    evaluation = on_policy = None
    if data.evaluation is not None:
      evaluation = EvalBatches(
        data.evaluation,
        batch_size=config.batch_size,
        kinds=kinds,
        layout=BatchLayout(starts),
        **rows,
      )
    if config.on_policy.share:
      on_policy = OnPolicyBatches(
        data.train,
        train,
        kinds=sampled_kinds(config),
        max_tokens=max_tokens(config),
        **rows,
      )
    return cls(train, evaluation, on_policy)


def _check_name(config: RunConfig) -> None:
  assert config.display_name is not None
  Registry(config.registry).prepare(config.display_name)


def _registered(config: RunConfig, card: dict[str, Any]) -> dict[str, Any]:
  """Registers the student of a finished run, if it has a display name; returns the card for run."""
  name = config.display_name
  if name is None:
    return card
  registered = processes.broadcast(
    "registered", lambda: register_student(config.model_dir, name, config.registry).reference
  )
  return {**card, "registered": registered}


def _agree_on_config(config: RunConfig) -> None:
  """Raises UserError if the processes have different configurations or versions."""
  numbers_depend_on = students.versions()
  numbers_depend_on.pop("python")
  processes.agree(
    "the processes run different programs",
    numbers_depend_on,
    "install the same versions everywhere",
  )
  values = {name: repr(value) for name, value in flatten(config).items()}
  processes.agree(
    "the processes have different configurations", values, "give every process the same flags"
  )


def _agree_on_data(config: RunConfig, data: PreparedData) -> None:
  """Raises UserError if the processes have read different rows or vocabularies."""
  values = {
    "the vocabulary": f"{data.vocabulary.spec} (digest {data.vocabulary.digest[:8]})",
    "the training data": f"{data.train.num_examples} examples ({data.train.fingerprint[:8]})",
  }
  if data.evaluation is not None:
    values["the evaluation data"] = (
      f"{data.evaluation.num_examples} examples ({data.evaluation.fingerprint[:8]})"
    )
  processes.agree("the processes have read different data", values, "give every one the same files")


@contextlib.contextmanager
def _model_dir(config: RunConfig) -> Iterator[pathlib.Path]:
  """Locks MODEL_DIR in process 0; raises UserError if another process sees another folder."""
  with contextlib.ExitStack() as stack:
    directory = pathlib.Path(config.model_dir)
    if processes.is_first():
      stack.enter_context(students.locked(config))
    if processes.count() > 1:
      nonce = processes.broadcast("nonce", lambda: students.write_nonce(directory))
      students.check_nonce(directory, nonce)
      # Nothing is written before every process has checked it.
      processes.wait_for_all("nonces")
    yield directory


def _finished(card: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
  return {
    **card,
    "finished": True,
    "steps": outcome.step,
    "best_step": outcome.best_step,
    "stopped_early": outcome.stopped_early,
    "metrics": outcome.evaluation,
    "padding_shares": outcome.padding_shares,
  }


def _end(card: dict[str, Any]) -> str:
  early = "stopped early after" if card["stopped_early"] else "trained for"
  return f"{early} {card['steps']} steps, the selected checkpoint is of step {card['best_step']}"


def _announce(
  config: RunConfig, data: PreparedData, trainer: Trainer, batches: TrainBatches, step: int
) -> None:
  """Prints a summary of the run, with the numbers that a user might want to change.

  Args:
    step: the number of steps already taken.
  """
  for warning in data.warnings:
    say(f"warning: {warning}")
  for source in ("train_source", "evaluation_source"):
    answers = (data.report[source] or {}).get("teacher")
    if answers and answers["answered"]:
      say(
        f"{source.removesuffix('_source')}: {answers['parsed']:,} of {answers['answered']:,} "
        f"teacher's answers parse ({answers['parsed_percent']:.2f} %), "
        f"{answers['agreeing_percent']:.1f} % agree with the gold label"
      )
  weights = data.report.get("agreement_weights")
  if weights:
    say(
      f"{weights['examples']:,} examples are weighted by the teacher's agreement, "
      f"{weights['mean']:.2f} in the mean, {weights['least']:.2f} at least"
    )
  optimizer = config.optimizer
  rate = optimizer.base_learning_rate * optimizer.learning_rate_multiplier
  mesh = ", ".join(f"{axis} {size}" for axis, size in trainer.mesh.shape.items())
  examples = len(batches.examples)
  shape = batches.packed.packer.shapes[0]
  lines = [
    f"training {config.student} ({parameter_count(config.model):,} weights) in "
    f"{config.model_dir}{f', going on after step {step}' if step else ''}",
    f"{examples:,} examples, {config.train_steps} steps of {config.batch_size} "
    f"= {config.train_steps * config.batch_size / examples:.1f} epochs",
    f"{optimizer.name}, learning rate {rate:g} = base rate {optimizer.base_learning_rate:g} "
    f"x multiplier {optimizer.learning_rate_multiplier:g}, {optimizer.schedule}",
    f"mesh {mesh}; rows of {shape.input_tokens} input and {shape.target_tokens} target tokens",
  ]
  if config.loss.extra_terms:
    weights = (f"{term.name} {term.weight:g}" for term in trainer.objective.every_term)
    lines.append(f"the loss is the sum of {', '.join(weights)}")
  if trainer.teacher is not None:
    size = parameter_count(trainer.teacher.config)
    lines.append(f"the teacher is {config.signals.model} ({size:,} weights)")
  if config.on_policy.share:
    lines.append(
      f"the student samples the targets of {100 * config.on_policy.share:g} % of the steps, at "
      f"temperature {config.on_policy.temperature:g} and up to {max_tokens(config)} tokens each"
    )
  if config.signals.logits is not None:
    lines.append(f"the teacher's next tokens are those of {config.signals.logits}")
  if data.evaluation is None:
    lines.append("no evaluation data: no early stopping, and the last checkpoint is handed on")
  for line in lines:
    say(line)
