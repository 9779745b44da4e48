"""One training step and one evaluation step: pure functions, jitted with shardings.

The state is donated, so the step updates it in place. Loss, accuracy and gradient come from the
same forward pass.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.config.schema import RunConfig, T5Config
from dss_jax.data.batches import BatchLayout, TargetFeature, empty_batch
from dss_jax.data.packing import RowShape
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.kinds import compares_examples, evaluation_objective, training_objective
from dss_jax.losses.objective import Objective, Sums
from dss_jax.losses.signals import Signals
from dss_jax.model.t5 import init_params
from dss_jax.parallel.sharding import logical_rules, param_shardings, rows_sharding, shardings_like
from dss_jax.train.compile_ahead import CompiledAhead
from dss_jax.train.teacher_network import TeacherNetwork, network_outputs
from dss_jax.train.train_state import TrainState, split_trained, trained_tree

Arrays = dict[str, jax.Array]


class SignalFile(Protocol):
  """A file of a teacher's next tokens, which travel with the batches."""

  @property
  def features(self) -> Sequence[TargetFeature]:
    """The arrays that it adds to a training batch."""

  def signal(self, batch: Mapping[str, jax.Array]) -> Any:
    """Returns the signal (losses/signals.py) that is in a batch's arrays."""


class Trainer:
  """The compiled functions of a run on a mesh: initialise, train one step, evaluate a batch."""

  def __init__(
    self,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    teacher: TeacherNetwork | None = None,
    file: SignalFile | None = None,
  ):
    """Makes the functions.

    Args:
      teacher: the network whose outputs the terms of the objective need; its weights may be
        loaded later.
      file: the file of next tokens that they need.
    """
    self.config = config
    self.mesh = mesh
    self.teacher = teacher
    self._file = file
    self.objective = training_objective(config, None if teacher is None else teacher.config)
    self.evaluation_objective = evaluation_objective(config.loss)
    # Of targets that the student has written itself: it learns nothing from predicting those.
    self.on_policy_objective = self.objective.of_source("teacher")
    self.rules = logical_rules(config.model, mesh, split_length=True)
    self._optimizer = optimizer
    boxed = jax.eval_shape(functools.partial(init_params, config.model), jax.random.key(0))
    self._params_shape = nn.meta.unbox(boxed)
    weight_shardings = param_shardings(boxed, mesh, config.mesh.weights_over_data)
    replicated = NamedSharding(mesh, PartitionSpec())
    # An argument and not a constant, so that runs with other seeds reuse the compiled functions.
    self._seed = np.uint32(config.seed)
    boxed = jax.eval_shape(self.objective.projections, jax.random.key(0))
    projection_shardings = param_shardings(boxed, mesh, config.mesh.weights_over_data)
    state_shape = jax.eval_shape(self._fresh_state, self._params_shape, self._seed)
    self.state_shardings: Any = TrainState(
      step=replicated,  # type: ignore[arg-type]
      params=weight_shardings,
      opt_state=shardings_like(
        state_shape.opt_state,
        trained_tree(self._params_shape, nn.meta.unbox(boxed)),
        trained_tree(weight_shardings, projection_shardings),
        mesh,
      ),
      projections=projection_shardings,
      average=weight_shardings if state_shape.average else {},
    )
    self.state_shape = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      state_shape,
      self.state_shardings,
    )
    batch_sharding = rows_sharding(mesh)
    teacher_shape = None if teacher is None else teacher.params_shape
    teacher_shardings = jax.tree.map(lambda leaf: leaf.sharding, teacher_shape)
    self._teacher_shape = teacher_shape
    self._train, self._train_on_policy = (
      jax.jit(
        functools.partial(self._train_step, objective),
        in_shardings=(self.state_shardings, batch_sharding, replicated, teacher_shardings),
        out_shardings=(self.state_shardings, replicated),
        donate_argnums=0,
      )
      for objective in (self.objective, self.on_policy_objective)
    )
    self._term_norm = jax.jit(
      self._term_gradient_norm,
      static_argnums=0,
      in_shardings=(self.state_shardings, batch_sharding, replicated, teacher_shardings),
      out_shardings=replicated,
    )
    self._evaluate = jax.jit(
      self._eval_step, in_shardings=(weight_shardings, batch_sharding), out_shardings=replicated
    )
    self._norm = jax.jit(
      optax.tree.norm,
      in_shardings=(trained_tree(weight_shardings, projection_shardings),),
      out_shardings=replicated,
    )
    self._ahead = CompiledAhead({})

  def init_state(self) -> TrainState:
    """Returns freshly initialised weights, sharded over the mesh; they depend on the seed alone."""

    def init(seed):
      key = jax.random.fold_in(jax.random.key(seed), 1)
      return self._fresh_state(nn.meta.unbox(init_params(self.config.model, key)), seed)

    return self._on_mesh(jax.jit(init, out_shardings=self.state_shardings), self._seed)

  def state_from_params(self, params: Any) -> TrainState:
    """Returns a state at step 0 with the given weights, which are on the mesh already."""
    # Another run's weights may be sharded over other axes.
    params = jax.device_put(params, self.state_shardings.params)
    return self._on_mesh(
      jax.jit(
        self._fresh_state,
        in_shardings=(self.state_shardings.params, None),
        out_shardings=self.state_shardings,
      ),
      params,
      self._seed,
    )

  def train_step(
    self, state: TrainState, batch: Arrays, *, on_policy: bool = False
  ) -> tuple[TrainState, Arrays]:
    """Takes one step; returns the new state, and the step's `sums` (Sums) and `gradient_norm`.

    Args:
      on_policy: whether to train on on_policy_objective.
    """
    if on_policy:
      train: Callable[..., Any] = self._train_on_policy
    else:
      train = self._ahead.get(("train", _shape_of(batch))) or self._train
    teacher = None if self.teacher is None else self.teacher.params
    return self._on_mesh(train, state, batch, self._seed, teacher)

  def term_gradient_norms(self, state: TrainState, batch: Arrays) -> dict[str, float]:
    """Computes the gradient norm of each term's part of the loss by itself, by term.

    Each term is a program of its own, compiled when this is first called.
    """
    teacher = None if self.teacher is None else self.teacher.params
    norms = {
      term.name: self._on_mesh(self._term_norm, term.name, state, batch, self._seed, teacher)
      for term in self.objective.every_term
      if term.weight
    }
    return {name: float(norm) for name, norm in norms.items()}

  def compile_ahead(self, train: Iterable[RowShape], evaluate: Iterable[RowShape]) -> None:
    """Starts compiling the steps for batches of these shapes, in this order, in other threads."""
    self.stop_compiling()
    self._ahead = CompiledAhead(
      {("train", shape): functools.partial(self.lower, shape) for shape in train}
      | {("evaluate", shape): functools.partial(self.lower_eval, shape) for shape in evaluate}
    )

  def stop_compiling(self) -> None:
    """Cancels what compile_ahead started."""
    self._ahead.close()
    self._ahead = CompiledAhead({})

  def lower(self, shape: RowShape) -> jax.stages.Lowered:
    """Lowers the training step for batches of the shape.

    The mesh may consist of devices that are not attached, such as a TPU topology to plan for.
    """
    layout = BatchLayout(
      self._starts,
      compares_examples(self.config),
      () if self._file is None else self._file.features,
    )
    batch_shape = self._batch_shape(shape, layout)
    return self._on_mesh(
      self._train.lower, self.state_shape, batch_shape, self._seed, self._teacher_shape
    )

  def lower_eval(self, shape: RowShape) -> jax.stages.Lowered:
    """Lowers the evaluation step for batches of the shape."""
    batch_shape = self._batch_shape(shape, BatchLayout(self._starts))
    return self._on_mesh(self._evaluate.lower, self.state_shape.params, batch_shape)

  def eval_step(self, params: Any, batch: Arrays) -> tuple[Sums, TokenLosses]:
    """Computes the teacher-forced sums of a batch, without dropout, and each position's figures.

    All hosts get both for the whole batch.
    """
    evaluate = self._ahead.get(("evaluate", _shape_of(batch))) or self._evaluate
    return self._on_mesh(evaluate, params, batch)

  def weight_norm(self, state: TrainState) -> float:
    """Computes the Euclidean norm of all that is trained; non-finite if any weight is."""
    return float(self._on_mesh(self._norm, trained_tree(state.params, state.projections)))

  def to_mesh(self, rows: int, fill: Callable[[slice], dict[str, Any]]) -> Arrays:
    """Builds a global batch with `fill`, which each host calls for its own rows only."""
    sharding = rows_sharding(self.mesh)
    # Devices along the model axis have the same rows: fill those once.
    filled: dict[tuple[int, int], dict[str, Any]] = {}
    index_map = sharding.addressable_devices_indices_map((rows,))
    pieces: dict[str, list[jax.Array]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for device, index in index_map.items():
      assert index is not None
      start, stop, _ = index[0].indices(rows)
      if (start, stop) not in filled:
        filled[start, stop] = fill(slice(start, stop))
      for name, array in filled[start, stop].items():
        pieces.setdefault(name, []).append(jax.device_put(array, device))
        shapes[name] = (rows, *array.shape[1:])
    return {
      name: jax.make_array_from_single_device_arrays(shapes[name], sharding, pieces[name])
      for name in pieces
    }

  @property
  def _starts(self) -> tuple[int, int] | None:
    """Some start tokens, with a shared encoder; which ones they are changes no shape."""
    return (0, 0) if self.config.data.shared_encoder else None

  def _batch_shape(self, shape: RowShape, layout: BatchLayout) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = rows_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
      for name, array in empty_batch(shape, layout).items()
    }

  def _on_mesh(self, function, *arguments):
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
      return function(*arguments)

  def _fresh_state(self, params: Any, seed: jax.Array) -> TrainState:
    # The student's weights use fold_in 1, dropout 2.
    key = jax.random.fold_in(jax.random.key(seed), 3)
    projections = nn.meta.unbox(self.objective.projections(key))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=self._optimizer.init(trained_tree(params, projections)),
      projections=projections,
      # A copy, since a step takes over the memory of both.
      average=jax.tree.map(jnp.copy, params) if "average" in self.objective.sources else {},
    )

  def _train_step(
    self, objective: Objective, state: TrainState, batch: Arrays, seed: jax.Array, teacher: Any
  ) -> tuple[TrainState, Arrays]:
    gradient, sums = self._gradient(objective, state, batch, seed, teacher)
    trained = trained_tree(state.params, state.projections)
    with jax.named_scope("optimizer"):
      updates, opt_state = self._optimizer.update(gradient, state.opt_state, trained)
      metrics = {"sums": sums, "gradient_norm": optax.tree.norm(gradient)}
      params, projections = split_trained(optax.apply_updates(trained, updates))
      average = self._followed(state.average, params, state.step)
    return TrainState(state.step + 1, params, opt_state, projections, average), metrics

  def _gradient(
    self, objective: Objective, state: TrainState, batch: Arrays, seed: jax.Array, teacher: Any
  ) -> tuple[Any, Sums]:
    # fold_in 1 is for the initial weights.
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), state.step)
    return accumulated_gradient(
      trained_tree(state.params, state.projections),
      batch,
      key,
      config=self.config,
      objective=objective,
      signals_of=functools.partial(self._signals, objective, teacher, state.average),
      # A chunk's logits are sharded over the whole mesh: rows over data, vocabulary over model.
      shards=self.mesh.size,
    )

  def _term_gradient_norm(
    self, term: str, state: TrainState, batch: Arrays, seed: jax.Array, teacher: Any
  ) -> jax.Array:
    objective = self.objective.alone(term)
    return optax.tree.norm(self._gradient(objective, state, batch, seed, teacher)[0])

  def _followed(self, average: Any, params: Any, step: jax.Array) -> Any:
    """Moves the average towards the weights after a step, whose number counts from 0.

    decay * average + (1 - decay) * weights; 1 - decay begins with 1 / (step + 1), so that the
    initial weights do not count (Tarvainen and Valpola 2017, as their code does).
    """
    decay = jnp.minimum(self.config.loss.self_average.decay, 1.0 - 1.0 / (step + 1.0))
    return jax.tree.map(
      lambda kept, new: decay * kept + (1.0 - decay) * new, average, params if average else {}
    )

  def _signals(self, objective: Objective, teacher: Any, average: Any, batch: Arrays) -> Signals:
    """Returns what the terms need beside the student's outputs, by source."""
    signals = {}
    if "teacher" in objective.sources:
      assert self.teacher is not None
      layers = objective.kept_layers("teacher")
      with jax.named_scope("teacher"):
        signals["teacher"] = self.teacher.outputs(teacher, batch, layers)
    if "average" in objective.sources:
      layers = objective.kept_layers("average")
      with jax.named_scope("average"):
        signals["average"] = network_outputs(average, self.config.model, batch, layers)
    if "file" in objective.sources:
      assert self._file is not None
      signals["file"] = self._file.signal(batch)
    return signals

  def _eval_step(self, params: Any, batch: Arrays) -> tuple[Sums, TokenLosses]:
    objective = self.evaluation_objective
    student = network_outputs(params, self.config.model, batch, objective.kept_layers(None))
    _, losses = objective.loss(
      student, batch, objective.denominators(batch), training=False, shards=self.mesh.size
    )
    return objective.sums(losses, batch), losses._replace(extra=())


def _shape_of(batch: Arrays) -> RowShape:
  rows, inputs = batch["encoder_input_tokens"].shape
  return RowShape(rows, inputs, batch["decoder_input_tokens"].shape[1])


def batch_loss(
  trained: Any,
  batch: Arrays,
  denominators: Mapping[str, jax.Array],
  key: jax.Array | None,
  *,
  config: RunConfig,
  objective: Objective | None = None,
  signals_of: Callable[[Arrays], Signals] = lambda batch: {},
  shards: int = 1,
) -> tuple[jax.Array, Sums]:
  """Computes the part of the total loss that these rows contribute, and their sums.

  Args:
    trained: the student's weights, with its projections if there are any (trained_tree).
    denominators: the denominator of each term of the objective, for the *whole* batch.
    key: for dropout; None disables it.
    objective: by default the run's, which then needs no signals.
    signals_of: returns the signals of a batch by their sources.
  """
  objective = objective or training_objective(config)
  signals = signals_of(batch)
  params, projections = split_trained(trained)
  student = network_outputs(params, config.model, batch, objective.kept_layers(None), key)
  loss, losses = objective.loss(
    student, batch, denominators, signals, training=key is not None, shards=shards
  )
  sums = objective.sums(losses, batch)
  if objective.state_terms:
    state_loss, state_sums = objective.state_loss(
      student, batch, denominators, signals, projections
    )
    loss, sums = loss + state_loss, sums | state_sums
  return loss, sums


def accumulated_gradient(
  trained: Any,
  batch: Arrays,
  key: jax.Array | None,
  *,
  config: RunConfig,
  objective: Objective | None = None,
  signals_of: Callable[[Arrays], Signals] = lambda batch: {},
  shards: int = 1,
) -> tuple[Any, Sums]:
  """Computes the gradient and the sums of the batch in config.accumulation_steps microbatches.

  Each microbatch's loss is divided by the denominators of the whole batch, so the gradients add
  up to that of the whole batch, however the tokens are distributed.
  """
  objective = objective or training_objective(config)
  denominators = objective.denominators(batch)
  differentiate = jax.grad(
    functools.partial(
      batch_loss, config=config, objective=objective, signals_of=signals_of, shards=shards
    ),
    has_aux=True,
  )
  microbatches = config.accumulation_steps
  if microbatches == 1:
    return differentiate(trained, batch, denominators, key)

  def split(x: jax.Array) -> jax.Array:
    # Microbatch i takes rows i, i + microbatches, ...: no row moves to another device.
    return jnp.moveaxis(x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]), 1, 0)

  def add(carry, numbered):
    number, microbatch = numbered
    microbatch_key = None if key is None else jax.random.fold_in(key, number)
    gradient, sums = differentiate(trained, microbatch, denominators, microbatch_key)
    return jax.tree.map(jnp.add, carry, (gradient, sums)), None

  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(
      differentiate, trained, jax.tree.map(lambda x: x[::microbatches], batch), denominators, key
    ),
  )
  carry, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), jax.tree.map(split, batch)))
  return carry


def parameter_count(config: T5Config) -> int:
  """Returns the number of weights of a student."""
  shapes = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(shapes)))
