"""Weights of rows by the share of the teacher's answers that agree."""

import itertools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.cli import main as cli
from dss_jax.config.schema import LABEL, RATIONALE, DataConfig, LossConfig
from dss_jax.data.agreement import agreement_of
from dss_jax.data.batches import EvalBatches, PackedBatches, TrainBatches
from dss_jax.data.pipeline import prepare
from dss_jax.data.records import read_rows, write_rows
from dss_jax.errors import UserError
from dss_jax.losses.cross_entropy import TokenLosses
from dss_jax.losses.kinds import make_objective
from dss_jax.train.step import accumulated_gradient

BOTH = (LABEL, RATIONALE)


def costs(rows, inputs, targets):
  return rows * (inputs + targets)


@pytest.mark.parametrize(
  ("provenance", "share"),
  [
    ({"status": "answered", "label": "4", "agreement": 0.6667}, 0.6667),
    ({"status": "answered", "label": "4", "agreement": 1}, 1.0),
    # The answers have no label: nothing agrees, which is no reason to forget the row's own.
    ({"status": "undecided", "label": None, "agreement": 0.0}, None),
    ({"status": "untouched"}, None),
    ({"status": "answered", "label": "4", "agreement": 2.0}, None),
    ({"status": "answered", "label": "4", "agreement": "1"}, None),
    ({"status": "answered", "label": "4", "agreement": math.nan}, None),
    ("somebody's own", None),
  ],
)
def test_the_share_is_in_the_provenance(provenance, share):
  assert agreement_of({"input_text": "x", "provenance": provenance}) == share
  assert agreement_of({"input_text": "x"}) is None


def annotated(number, share=None, rationales=()):
  row = {"input_text": f"row {number}", "output_text": f"{number}", "rationale": f"why {number}"}
  if share is not None:
    row["provenance"] = {"status": "answered", "label": f"{number}", "agreement": share}
  return {**row, **({"rationales": [row["rationale"], *rationales]} if rationales else {})}


@pytest.fixture
def config(tmp_path):
  rows = [annotated(0, 0.25), annotated(1), annotated(2, 0.5, ["another"]), annotated(3, 1.0)]
  write_rows(tmp_path / "train.jsonl", rows)
  return DataConfig(
    dataset=str(tmp_path / "train.jsonl"),
    vocabulary="bytes",
    feature_lengths={"inputs": 32, "targets": 32},
  )


def test_each_example_has_its_rows_weight(config, tmp_path):
  plain = prepare(config, BOTH)
  assert plain.train.example_weights is None
  assert "agreement_weights" not in plain.report
  data = prepare(config, BOTH, agreement_weights=True)
  # The third row's further rationale is an example of its own.
  np.testing.assert_array_equal(data.train.example_weights, np.float32([0.25, 1, 0.5, 0.5, 1]))
  assert data.report["agreement_weights"] == {"examples": 4, "mean": 0.5625, "least": 0.25}
  # Other weights are another run, and no weights the run that it was.
  assert data.train.fingerprint != plain.train.fingerprint
  rows = list(read_rows(tmp_path / "train.jsonl"))
  rows[0]["provenance"]["agreement"] = 0.75
  write_rows(tmp_path / "train.jsonl", rows)
  assert prepare(config, BOTH).train.fingerprint == plain.train.fingerprint
  changed = prepare(config, BOTH, agreement_weights=True)
  assert changed.train.fingerprint != data.train.fingerprint


def test_rows_without_an_agreement_are_refused(config, tmp_path):
  write_rows(tmp_path / "train.jsonl", [annotated(0), annotated(1)])
  with pytest.raises(UserError, match=r"--agreement-weights: no row of .*train\.jsonl has the"):
    prepare(config, BOTH, agreement_weights=True)


def test_target_tokens_have_their_examples_weight(make_store):
  store = make_store(20)
  weights = np.random.default_rng(0).uniform(0.1, 1, 20).astype(np.float32)
  options = {"kinds": BOTH, "costs": costs, "batch_size": 6}
  plain = TrainBatches(store, seed=1, **options)
  batches = TrainBatches(store, seed=1, example_weights=weights, **options)
  for step in range(5):
    packing, sequences = batches.pack(step)
    assert (packing, sequences) == plain.pack(step)
    weighted = batches.packed.fill(packing, sequences)
    equal = plain.packed.fill(packing, sequences)
    expected = np.zeros_like(weighted["decoder_loss_weights"])
    for row, members in enumerate(packing.members):
      lengths = [len(store.target_tokens(*sequences[number])) for number in members]
      ends = np.cumsum([0, *lengths])
      for number, (start, stop) in zip(members, itertools.pairwise(ends), strict=True):
        expected[row, start:stop] = weights[sequences[number][0]]
    np.testing.assert_array_equal(weighted.pop("decoder_loss_weights"), expected)
    equal.pop("decoder_loss_weights")
    jax.tree.map(np.testing.assert_array_equal, weighted, equal)
  # What is right stays right in evaluations, however sure the teacher was.
  assert not hasattr(EvalBatches(store, **options), "example_weights")


def test_the_loss_by_hand():
  """Two labels of one token, losses 2 and 4, shares 1 and 0.5: (2 + 0.5 * 4) / 1.5."""
  batch = {
    "decoder_target_tokens": jnp.array([[5, 6, 0]]),
    "decoder_loss_weights": jnp.array([[1.0, 0.5, 0.0]]),
    "decoder_target_kinds": jnp.array([[LABEL, LABEL, 0]]),
  }
  losses = TokenLosses(
    loss=jnp.array([[2.0, 4.0, 9.0]]), correct=jnp.array([[1.0, 0.0, 0.0]]), extra=()
  )
  objective = make_objective(LossConfig(alpha=1.0, agreement_weights=True))
  sums = objective.sums(losses, batch)
  assert float(objective.denominators(batch)["label"]) == 1.5
  assert float(objective.total(sums)) == pytest.approx(4 / 1.5)
  assert float(sums["label/accuracy"].mean()) == pytest.approx(1 / 1.5)


@pytest.mark.slow
def test_packed_rows_have_the_gradient_of_unpacked_ones(make_store, make_config, random_params):
  store = make_store(8, seed=3)
  weights = np.random.default_rng(1).uniform(0.1, 1, 8).astype(np.float32)
  config = make_config(loss=LossConfig(agreement_weights=True))
  params = random_params(config.model)
  everything = np.arange(8)
  results = []
  for row_multiple in (1, 14):
    batches = PackedBatches(
      store,
      kinds=BOTH,
      planned_for=[everything],
      costs=costs,
      row_multiple=row_multiple,
      example_weights=weights,
    )
    packing, sequences = batches.pack(everything)
    batch = batches.fill(packing, sequences)
    results.append(
      (len(packing.members), *accumulated_gradient(params, batch, None, config=config))
    )
  (few, packed, sums), (many, apart, other_sums) = results
  assert few < len(sequences) <= many
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), packed, apart)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, other_sums)
  # Otherwise the weights would be without effect.
  unweighted = dict(batch)
  unweighted["decoder_loss_weights"] = (batch["decoder_loss_weights"] > 0).astype(np.float32)
  plain, _ = accumulated_gradient(params, unweighted, None, config=config)
  differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), packed, plain)
  assert max(jax.tree.leaves(differences)) > 1e-3


@pytest.mark.slow
def test_from_annotation_to_training(server, numbered, tmp_path, monkeypatch, capsys):
  """Row 1's three answers are 2, 9 and 2; all others agree."""
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  asked = itertools.count()

  def answer(row):
    wrong = row == 1 and next(asked) == 1
    return f"There are {row} and 1 more. The answer is ({row} + {8 if wrong else 1})."

  server.answer = answer
  write_rows(tmp_path / "in.jsonl", numbered(8))

  def dss(*arguments):
    monkeypatch.setattr(sys, "argv", ["dss", *map(str, arguments)])
    try:
      cli.main()
      code = 0
    except SystemExit as stopped:
      code = stopped.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err

  code, _, err = dss(
    *("annotate", tmp_path / "in.jsonl", "--teacher", "openai:m", "--teacher-url", server.url),
    *("--prompt", "svamp", "--samples", 3, "--temperature", 0.7),
    *("--output", tmp_path / "train.jsonl"),
  )
  assert code == 0, err
  rows = list(read_rows(tmp_path / "train.jsonl"))
  assert [agreement_of(row) for row in rows] == [1.0, 0.6667, *[1.0] * 6]

  def distill(name, *flags):
    code, _, err = dss(
      *("distill", "--student", "tiny", "--vocabulary", "bytes", "--mesh", "data=1", "--seed", 1),
      *("--dataset", tmp_path / "train.jsonl", "--model-dir", tmp_path / name, "--batch-size", 8),
      *("--max-input-tokens", 64, "--max-output-tokens", 64, "--train-steps", 1, *flags),
    )
    assert code == 0, err
    (metrics,) = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return json.loads(metrics), json.loads((tmp_path / name / "model.json").read_text()), err

  plain, _, _ = distill("plain")
  weighted, card, err = distill("weighted", "--agreement-weights")
  assert (
    "8 examples are weighted by the teacher's agreement, 0.96 in the mean, 0.67 at least" in err
  )
  assert card["data"]["report"]["agreement_weights"]["examples"] == 8
  tokens = len("(1 + 1)") + 1 + len(rows[1]["rationale"]) + 1
  lost = plain["train_num_predictions"] - weighted["train_num_predictions"]
  assert lost == pytest.approx((1 - 0.6667) * tokens, abs=1e-3)
