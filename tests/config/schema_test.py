"""The configuration's dataclasses: defaults, bounds in words, flattening."""

import dataclasses
import re
import typing

import pytest

from dss_jax.config import schema as configs
from dss_jax.config.schema import Bounds, DataConfig, RunConfig, T5Config, flatten

MODEL = T5Config(
  emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
RUN = RunConfig(model_dir="runs/x", student="tiny", model=MODEL, data=DataConfig(dataset="a.jsonl"))


def test_defaults_are_the_design_s():
  assert (RUN.train_steps, RUN.batch_size, RUN.loss.alpha, RUN.seed) == (300, 24, 0.5, 0)
  assert (RUN.data.max_input_tokens, RUN.data.max_output_tokens) == (7168, 1024)
  assert (RUN.optimizer.name, RUN.optimizer.base_learning_rate) == ("adafactor", 1e-3)
  assert (RUN.optimizer.schedule, RUN.optimizer.learning_rate_multiplier) == ("constant", 1.0)
  assert RUN.evaluation.interval_steps == 20
  assert RUN.evaluation.early_stopping
  assert RUN.evaluation.checkpoint_selection


@pytest.mark.parametrize(
  ("bounds", "words"),
  [
    (Bounds(1), "at least 1"),
    (Bounds(0, 0.99), "from 0 to 0.99"),
    (Bounds(high=3), "at most 3"),
    (Bounds(0, 2**32 - 1), "from 0 to 4294967295"),
  ],
)
def test_bounds_in_words(bounds, words):
  assert str(bounds) == words


def test_flatten_names_every_field_of_every_part():
  flat = flatten(RUN)
  assert flat["RunConfig.seed"] == 0
  assert flat["T5Config.emb_dim"] == 8
  assert flat["DataConfig.dataset"] == "a.jsonl"
  parts = [RUN, *(getattr(RUN, field.name) for field in dataclasses.fields(RUN))]
  parts = [part for part in parts if dataclasses.is_dataclass(part)]
  fields = sum(len(dataclasses.fields(part)) for part in parts)
  assert len(flat) == fields - (len(parts) - 1)


def test_what_may_change_on_resume_are_fields():
  assert set(configs.FREE_ON_RESUME) <= set(flatten(RUN))


def test_every_number_has_bounds():
  for part in (RunConfig, T5Config, configs.LossConfig, configs.OptimizerConfig):
    for name, hint in typing.get_type_hints(part, include_extras=True).items():
      assert hint not in (int, float), f"{part.__name__}.{name} takes any number"


def test_every_field_is_read_by_the_package():
  """An option that nothing reads is a promise that nothing keeps."""
  package = configs.shipped_folder("tasks").parent / "dss_jax"
  sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
  for name in flatten(RUN):
    field = name.split(".")[1]
    assert re.search(rf"\.{field}\b", sources), f"nothing reads {name}"


def test_shipped_students():
  assert {"tiny", "mini", "small", "base", "large", "xl", "xxl"} <= set(configs.student_names())
