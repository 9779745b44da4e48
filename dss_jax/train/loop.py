"""The training loop: step, log, evaluate, stop early, save, resume.

It waits for the device only to read numbers: the metrics of a step are read after the next step
is dispatched, and a thread packs the next batch meanwhile.

With several processes, each runs the same loop: its decisions depend on values that all devices
have, and only process 0 writes metrics.
"""

import concurrent.futures
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dss_jax.config.schema import RunConfig
from dss_jax.data.batches import EvalBatches, TrainBatches
from dss_jax.errors import Preempted, TrainingDiverged, UserError
from dss_jax.parallel import processes
from dss_jax.parallel.preemption import StopSignal, StopVote
from dss_jax.progress import ProgressLine, note_of, progress_line
from dss_jax.train.checkpointing import Checkpoints
from dss_jax.train.evaluation import evaluate
from dss_jax.train.metrics import MetricsWriter, NoWriter, named_metrics, on_policy_metrics
from dss_jax.train.on_policy import OnPolicy
from dss_jax.train.selection import Scores, Standing, compare
from dss_jax.train.step import Trainer, TrainState
from dss_jax.train.term_balance import TermBalance


@dataclasses.dataclass
class Progress:
  """The state of the loop besides the weights; saved with every checkpoint."""

  standing: Standing = dataclasses.field(default_factory=Standing)
  evaluations_since_improvement: int = 0
  stopped_early: bool = False
  # The metrics of the newest evaluation, and of the best one.
  evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
  best_evaluation: dict[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> "Progress":
    """Returns what dataclasses.asdict was given."""
    return cls(**{**value, "standing": Standing.from_json(value["standing"])})


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The result of a run."""

  step: int
  best_step: int
  stopped_early: bool
  evaluation: dict[str, float]  # at best_step; empty without evaluation data
  padding_shares: dict[str, float]


class Loop:
  """Runs training from the newest checkpoint, or from step 0, to the end."""

  def __init__(
    self,
    config: RunConfig,
    trainer: Trainer,
    train_batches: TrainBatches,
    eval_batches: EvalBatches | None,
    on_policy: OnPolicy | None = None,
  ):
    self._config = config
    self._trainer = trainer
    self._train_batches = train_batches
    self._eval_batches = eval_batches
    self._on_policy = on_policy
    self._objective = trainer.objective
    self._directory = pathlib.Path(config.model_dir)
    self._progress = Progress()
    self._balance = TermBalance(trainer.objective)

  def run(
    self,
    initial_state: Callable[[], TrainState] | None = None,
    on_start: Callable[[int], None] = lambda step: None,
  ) -> Outcome:
    """Trains to the end of the run.

    Args:
      initial_state: returns the state to start from if the run has no checkpoint; by default
        freshly initialised.
      on_start: called with the number of steps already taken, once the state is restored.

    Raises:
      TrainingDiverged: a loss, gradient or weight is non-finite; the last checkpoint is kept.
      Preempted: a signal asked to stop; the state is saved.
    """
    config = self._config
    keep_best = self._eval_batches is not None and config.evaluation.checkpoint_selection
    self._checkpoints = Checkpoints(self._directory / "checkpoints", keep_best=keep_best)
    state, step = self._restore(initial_state)
    on_start(step)
    self._writer: MetricsWriter | NoWriter = NoWriter()
    if processes.is_first():
      self._writer = MetricsWriter(self._directory, resume_step=step)
    try:
      with StopSignal() as stop, progress_line("step", config.train_steps, step) as line:
        state, step = self._steps(state, step, stop, line)
      self._checkpoints.wait()
      best = self._checkpoints.best_step() if keep_best else step
      return Outcome(
        step=step,
        best_step=step if best is None else best,
        stopped_early=self._progress.stopped_early,
        evaluation=self._progress.best_evaluation if keep_best else self._progress.evaluation,
        padding_shares=self._train_batches.packed.padding_shares(),
      )
    finally:
      self._writer.close()
      self._checkpoints.close()

  def _restore(self, initial_state: Callable[[], TrainState] | None) -> tuple[TrainState, int]:
    """Returns the newest checkpoint's state and step, or the initial state and 0."""
    step = self._checkpoints.latest_step()
    if step is None:
      return (initial_state or self._trainer.init_state)(), 0
    state, progress = self._checkpoints.restore(step, self._trainer.state_shape)
    if "standing" not in progress:
      raise UserError(
        f"{self._directory / 'checkpoints' / str(step)}: was saved by an older dss_jax, which "
        "compared evaluations otherwise; go on with that one, or train in a new --model-dir"
      )
    self._progress = Progress.from_json(progress)
    return state, step

  def _steps(
    self, state: TrainState, step: int, stop: StopSignal, line: ProgressLine
  ) -> tuple[TrainState, int]:
    """Takes steps until the last one, an early stop or a signal."""
    config = self._config
    pending: tuple[int, Any] | None = None
    clock = _Clock(config.batch_size)
    vote = StopVote(self._trainer.mesh)
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as thread:
      upcoming = thread.submit(self._batch, step)
      while step < config.train_steps and not self._progress.stopped_early:
        batch = upcoming.result()
        upcoming = thread.submit(self._batch, step + 1)
        state, metrics = self._take_step(state, step, batch)
        step += 1
        stopped_by = vote.cast(stop.number)
        if pending:
          self._log(*pending, clock, line)
        clock.tick()
        pending = (step, metrics)
        evaluate_now = self._is_due(step, config.evaluation.interval_steps)
        save_now = self._is_due(
          step, config.checkpoint_interval_steps or config.evaluation.interval_steps
        )
        if not (evaluate_now or save_now or stopped_by):
          continue
        self._log(*pending, clock, line)
        pending = None
        self._check_finite(step, {"the norm of the weights": self._trainer.weight_norm(state)})
        if evaluate_now:
          self._compare_terms(state, batch, step, line)
        ranking = None
        if evaluate_now and self._eval_batches is not None:
          ranking = self._evaluate(state, step, line)
        self._save(state, step, ranking)
        clock.restart()
        if stopped_by and step < config.train_steps and not self._progress.stopped_early:
          self._checkpoints.wait()
          raise Preempted(step, stopped_by)
    return state, step

  def _is_due(self, step: int, interval_steps: int) -> bool:
    return step % interval_steps == 0 or step == self._config.train_steps

  def _batch(self, step: int) -> dict[str, jax.Array] | None:
    """Returns the batch of step n (from 0) on the mesh; None if the student is to sample it."""
    if self._on_policy is not None and self._on_policy.takes(step):
      return None
    packing, sequences = self._train_batches.pack(step)
    fill = functools.partial(self._train_batches.packed.fill, packing, sequences)
    return self._trainer.to_mesh(packing.shape.rows, fill)

  def _take_step(
    self, state: TrainState, step: int, batch: dict[str, jax.Array] | None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Takes step n (from 0) on its batch, or on one that it samples from the present weights."""
    if batch is not None:
      return self._trainer.train_step(state, batch)
    assert self._on_policy is not None
    batch, figures = self._on_policy.batch(state.params, step)
    state, metrics = self._trainer.train_step(state, batch, on_policy=True)
    return state, {**metrics, "sampled": figures}

  def _log(self, step: int, metrics: Any, clock: "_Clock", line: ProgressLine) -> None:
    """Writes a step's metrics; raises TrainingDiverged if one is non-finite."""
    sums, gradient_norm = jax.device_get((metrics["sums"], metrics["gradient_norm"]))
    if "sampled" in metrics:
      objective = self._trainer.on_policy_objective
      named = on_policy_metrics(objective, sums, metrics["sampled"])
    else:
      self._balance.add(sums)
      named = named_metrics(self._objective, sums, "train")
    named["train_gradient_norm"] = float(gradient_norm)
    self._check_finite(step, named)
    named.update(clock.rates())
    self._writer.write(step, named)
    line.update(step, note_of(named))

  def _check_finite(self, step: int, named: Mapping[str, float]) -> None:
    """Raises TrainingDiverged, with what to try, if a value is non-finite."""
    bad = [name for name, value in named.items() if not math.isfinite(value)]
    if not bad:
      return
    self._checkpoints.wait()
    last_good = self._checkpoints.latest_step()
    kept = (
      "no checkpoint was saved yet"
      if last_good is None
      else f"the checkpoint of step {last_good} is kept in {self._directory / 'checkpoints'}"
    )
    raise TrainingDiverged(
      f"step {step}: {bad[0]} is {named[bad[0]]}, so the run stops; {kept}; try a smaller "
      "--learning-rate-multiplier, OptimizerConfig.warmup_steps, a smaller "
      "OptimizerConfig.clip_norm, or T5Config.dtype = 'float32', in a new --model-dir"
    )

  def _compare_terms(
    self, state: TrainState, batch: dict[str, jax.Array] | None, step: int, line: ProgressLine
  ) -> None:
    """Writes the gradient norms of the terms on demand, and warns once of terms that are lost.

    Args:
      batch: the step's; None if the student has sampled it, and not all terms are computed.
    """
    norms: dict[str, float] = {}
    if self._config.evaluation.term_gradients and batch is not None:
      norms = self._trainer.term_gradient_norms(state, batch)
      named = {f"{name}/train_gradient_norm": norm for name, norm in norms.items()}
      self._writer.write(step, named)
    if warning := self._balance.warning(norms):
      line.say(f"warning: {warning}")

  def _evaluate(self, state: TrainState, step: int, line: ProgressLine) -> dict[str, float]:
    """Evaluates, updates early stopping, and returns the metrics that rank the checkpoint."""
    assert self._eval_batches is not None
    evaluation = evaluate(self._trainer, state.params, self._eval_batches)
    sums = evaluation.sums
    named = named_metrics(self._trainer.evaluation_objective, sums, "eval")
    self._check_finite(step, named)
    self._writer.write(step, named)
    kind = self._objective.ranking_kind
    loss, accuracy = (float(sums[f"{kind}/{figure}"].mean()) for figure in ("loss", "accuracy"))
    right = evaluation.sequences[kind].right
    line.say(
      f"step {step}: evaluation loss {named['eval_total_loss']:.4f}, "
      f"{kind} accuracy {accuracy:.4f}, {kind} loss {loss:.4f}, "
      f"{right.sum():,} of {len(right):,} {kind}s wholly right"
    )
    marks = "".join("1" if each else "0" for each in right)
    is_best = self._update_best(Scores(marks, accuracy, loss), named)
    return {"accuracy": accuracy, "loss": loss, "best_at": float(step if is_best else -1)}

  def _update_best(self, scores: Scores, named: dict[str, float]) -> bool:
    """Updates the best evaluation and early stopping; returns whether this is the best so far."""
    config, progress = self._config.evaluation, self._progress
    verdict = compare(progress.standing, scores, config)
    progress.standing = verdict.standing
    progress.evaluation = named
    if verdict.is_best:
      progress.best_evaluation = named
    progress.evaluations_since_improvement += 1
    if verdict.is_improvement:
      progress.evaluations_since_improvement = 0
    progress.stopped_early = (
      config.early_stopping and progress.evaluations_since_improvement >= config.patience
    )
    return verdict.is_best

  def _save(self, state: TrainState, step: int, ranking: dict[str, float] | None) -> None:
    self._writer.flush()
    self._checkpoints.save(state, step, dataclasses.asdict(self._progress), ranking)


class _Clock:
  """Measures steps per second since the last pause; compiling and evaluating do not count."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self.restart()

  def restart(self) -> None:
    self._since: float | None = None
    self._steps = 0

  def tick(self) -> None:
    """Counts a finished step; the first call only starts the clock."""
    self._now = time.monotonic()
    if self._since is None:
      self._since = self._now
    else:
      self._steps += 1

  def rates(self) -> dict[str, float]:
    """Returns steps and examples per second, or nothing before the second step."""
    if self._since is None or not self._steps:
      return {}
    steps_per_second = self._steps / max(self._now - self._since, 1e-9)
    return {
      "time/steps_per_second": steps_per_second,
      "time/examples_per_second": steps_per_second * self._batch_size,
    }
