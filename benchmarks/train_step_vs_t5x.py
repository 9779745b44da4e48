"""Our training step against T5X's network: the same students, examples, optimizer and dropout.

python benchmarks/train_step_vs_t5x.py --data-dir CQA --vocabulary FILE.model
    [--task cqa] [--student small] [--batch-size 24] [--repeats 3] [--random-bits unsafe_rbg]

The peer is T5X's T5 with T5X's loss, in one pass over labels and rationales, all padded to the
longest of the batch; by default its random bits are those of T5X's fine-tuning. Everything else is
as in train_step_vs_torch.py, which describes the printed line of JSON. Every shape is compiled
before the measurement: T5X has a new one for almost every batch.

Needs T5X (docs/t5x.md).
"""

import json
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
from train_step_vs_torch import Job, compared, make_job, parser, peak_gib, serve


def main() -> None:
  flags = parser(__doc__, repeats=3)
  flags.add_argument(
    "--random-bits", choices=["unsafe_rbg", "rbg", "threefry2x32"], default="unsafe_rbg"
  )
  arguments = flags.parse_args()
  try:
    import t5x.models  # noqa: F401
  except ImportError:
    sys.stderr.write("T5X is not installed: pip install --no-deps -r requirements-t5x.txt\n")
    sys.exit(2)
  figures = compared(make_job(arguments), run_peer, arguments.random_bits)
  print(json.dumps({**figures, "peer_random_bits": arguments.random_bits}))


def run_peer(job: Job, connection: Connection, random_bits: str) -> None:
  """Runs the same steps with T5X: one padded pass and one update."""
  import jax
  import optax

  jax.config.update("jax_default_prng_impl", random_bits)
  import seqio
  import t5x.models
  from t5x.examples.t5 import network

  from dss_jax.train.optimizer import make_optimizer

  ours = job.config.model
  module = network.Transformer(
    network.T5Config(
      vocab_size=ours.vocab_size,
      emb_dim=ours.emb_dim,
      num_heads=ours.num_heads,
      head_dim=ours.head_dim,
      mlp_dim=ours.mlp_dim,
      num_encoder_layers=ours.num_encoder_layers,
      num_decoder_layers=ours.num_decoder_layers,
      mlp_activations=ours.mlp_activations,
      dropout_rate=ours.dropout_rate,
      dtype=ours.dtype,
    )
  )
  vocabulary = seqio.PassThroughVocabulary(size=ours.vocab_size)
  optimizer = make_optimizer(job.config.optimizer, job.config.train_steps)
  model = t5x.models.EncoderDecoderModel(module, vocabulary, vocabulary, optimizer_def=None)

  batches = []
  for step in job.steps:
    inputs, targets = (padded([pair[side] for pairs in step for pair in pairs]) for side in (0, 1))
    batches.append(
      {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
        "decoder_loss_weights": (targets > 0).astype(np.float32),
      }
    )

  def update(params, opt_state, batch, key):
    (loss, _), gradient = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, key)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  train_step = jax.jit(update, donate_argnums=(0, 1))
  shapes = {name: array.shape for name, array in batches[0].items()}
  variables = jax.jit(
    lambda key: model.get_initial_variables(key, shapes, dict.fromkeys(shapes, np.int32))
  )(jax.random.PRNGKey(0))
  params = variables["params"]
  opt_state = optimizer.init(params)

  def run_step(number):
    nonlocal params, opt_state
    batch = jax.device_put(batches[number])
    started = time.perf_counter()
    key = jax.random.PRNGKey(number)
    params, opt_state, loss = train_step(params, opt_state, batch, key)
    jax.block_until_ready((params, loss))
    return time.perf_counter() - started

  first = run_step(0)
  for number in range(len(batches)):
    run_step(number)
  serve(connection, first, run_step)
  positions = sum(
    batch[name].size
    for batch in batches
    for name in ("encoder_input_tokens", "decoder_target_tokens")
  )
  versions = f"t5x with jax {jax.__version__}"
  connection.send({"positions": positions, "peak_gib": peak_gib(), "versions": versions})


def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
  """Returns token ids in rows, int32, padded with 0 to the longest."""
  longest = max(map(len, rows))
  return np.array([[*row, *[0] * (longest - len(row))] for row in rows], np.int32)


if __name__ == "__main__":
  main()
