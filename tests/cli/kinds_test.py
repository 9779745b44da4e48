"""--kind: the files and bindings that it stands for."""

import pytest

from dss_jax.cli.kinds import KINDS, compose
from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import RunConfig
from dss_jax.errors import UserError


def config_of(kinds, weights=(), base="runs/distill.gin", gin_files=()):
  files, bindings = compose(base, kinds, weights)
  model_dir = Binding("MODEL_DIR", "-", "--model-dir")
  return load_config(RunConfig, [*files, *gin_files], [*bindings, model_dir])


def loss_of(*arguments, **named):
  loss = config_of(*arguments, **named).loss
  return loss.alpha, loss.cross_entropy_weight, dict(loss.extra_terms)


@pytest.mark.parametrize(
  ("kinds", "alpha", "cross_entropy", "terms"),
  [
    (None, 0.5, 1.0, {}),
    ("step-by-step", 0.5, 1.0, {}),
    ("labels", 1.0, 1.0, {}),
    ("response", 0.5, 0.0, {"response": 1.0}),
    ("labels,response", 1.0, 1.0, {"response": 1.0}),
    ("response, step-by-step ,feature", 0.5, 1.0, {"response": 1.0, "feature": 1.0}),
  ],
)
def test_what_is_trained_on(kinds, alpha, cross_entropy, terms):
  assert loss_of(kinds) == (alpha, cross_entropy, terms)


@pytest.mark.parametrize(
  ("kinds", "base"), [("labels", "runs/distill.gin"), (None, "runs/tune.gin")]
)
def test_a_gin_file_that_includes_a_run_leaves_labels_alone(kinds, base):
  config = config_of(kinds, base=base, gin_files=["runs/quickstart.gin"])
  assert config.student == "quickstart"
  assert config.loss.alpha == 1.0


def test_weights():
  weights = ["step-by-step=0.25", "response=2"]
  assert loss_of("step-by-step,response", weights) == (0.5, 0.25, {"response": 2.0})


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_file_that_says_how_it_is_run(kind):
  assert loss_of(f"step-by-step,{kind}")[2]


@pytest.mark.parametrize(
  ("kinds", "weights", "says"),
  [
    ("sbs", [], "there is no kind 'sbs'; choose from step-by-step, labels, response"),
    ("response,response", [], "has 'response' twice"),
    ("labels,step-by-step", [], "step-by-step trains on labels already"),
    (None, ["response=1"], "no --kind"),
    ("response", ["feature=1"], "the run has no loss 'feature'"),
    ("response", ["response=much"], "'much' is no number"),
  ],
)
def test_what_is_refused(kinds, weights, says):
  with pytest.raises(UserError, match=says):
    compose("runs/distill.gin", kinds, weights)
