"""A T5X model and a student of the same weights, and a file of rows for both."""

import json

import pytest

from dss_jax.config.schema import DataConfig, LossConfig, RunConfig, T5Config

ALPHA = 0.3
ROWS = 40


@pytest.fixture(scope="session")
def rows():
  """Rows of many lengths; every fifth has no rationale, every seventh no label."""
  made = []
  for number in range(ROWS):
    row = {"input_text": f"Add {number} and {number * number}." + " Please." * (number % 3)}
    if number % 7 != 3:
      row["output_text"] = str(number + number * number)
    if number % 5 != 4:
      row["rationale"] = f"{number} and its square" + " make the sum" * (number % 4)
    if len(row) > 1:
      made.append(row)
  return made


@pytest.fixture(scope="session")
def data_config(rows, tmp_path_factory):
  """The rows as a training file; the first ten of them are the evaluation's."""
  folder = tmp_path_factory.mktemp("rows")
  for name, some in (("train", rows), ("eval", rows[:10])):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
  return DataConfig(
    dataset=str(folder / "train.jsonl"),
    eval_dataset=str(folder / "eval.jsonl"),
    vocabulary="bytes",
    feature_lengths={"inputs": 48, "targets": 40},
  )


@pytest.fixture(scope="session")
def run_config(data_config):
  return RunConfig(
    model_dir="unused",
    student="tiny",
    model=T5Config(
      emb_dim=16,
      # T5X splits heads over all eight devices of a CPU.
      num_heads=8,
      head_dim=4,
      mlp_dim=32,
      num_encoder_layers=2,
      num_decoder_layers=2,
      vocab_size=384,
      dropout_rate=0.0,
    ),
    data=data_config,
    loss=LossConfig(alpha=ALPHA, label_smoothing=0.1, z_loss=1e-3),
  )


@pytest.fixture(scope="session")
def make_t5x_model(run_config):
  """T5X's network of the run's sizes, with our loss or with T5X's own."""
  from t5x import adafactor
  from t5x.examples.t5 import network

  from dss_jax.t5x import data, model

  def make_t5x_model(cls=model.StepByStepModel, sizes=run_config.model, **arguments):
    module = network.Transformer(
      network.T5Config(
        vocab_size=sizes.vocab_size,
        emb_dim=sizes.emb_dim,
        num_heads=sizes.num_heads,
        head_dim=sizes.head_dim,
        mlp_dim=sizes.mlp_dim,
        num_encoder_layers=sizes.num_encoder_layers,
        num_decoder_layers=sizes.num_decoder_layers,
        mlp_activations=sizes.mlp_activations,
        dropout_rate=sizes.dropout_rate,
        dtype="float32",
      )
    )
    words = data.vocabulary(run_config.data)
    return cls(
      module=module,
      input_vocabulary=words,
      output_vocabulary=words,
      optimizer_def=adafactor.Adafactor(
        decay_rate=0.8,
        step_offset=0,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
      ),
      **arguments,
    )

  return make_t5x_model


@pytest.fixture(scope="session")
def params(run_config):
  """Fresh weights, as numpy arrays."""
  import jax
  from flax import linen as nn

  from dss_jax.model.t5 import init_params

  return jax.device_get(nn.meta.unbox(init_params(run_config.model, jax.random.key(1))))


@pytest.fixture(scope="session")
def dataset_config(data_config):
  """T5X's configuration of the training data, and what of it is to differ."""
  from t5x import utils

  def dataset_config(mixture, **changes):
    fields = {
      "task_feature_lengths": data_config.feature_lengths,
      "split": "train",
      "batch_size": 8,
      "shuffle": True,
      "seed": 3,
      **changes,
    }
    return utils.DatasetConfig(mixture_or_task_name=mixture, **fields)

  return dataset_config
