"""Distillation from a teacher with another vocabulary: sorted probabilities are compared."""

import dataclasses

import jax
import jax.numpy as jnp

from dss_jax.config.kinds import UniversalConfig
from dss_jax.losses.signals import SortedProbabilities, SparseLogits


@dataclasses.dataclass(frozen=True)
class UniversalLoss:
  """The distance of the student's sorted next-token probabilities from the teacher's.

  sum_k |p_(k) - q_(k)| + |sum_{k > K} p_(k) - sum_{k > K} q_(k)|, with p_(k) and q_(k) the k-th
  largest of softmax(logits / T) of student and teacher: the universal logit distillation loss
  (Boizard et al. 2024), a Wasserstein distance of distributions whose words are unrelated, with
  what is beyond the K stored probabilities compared as one, the tail. Zero where the sorted
  distributions are equal.
  """

  config: UniversalConfig

  def __call__(
    self,
    logits_RmV: jax.Array,
    targets_Rm: jax.Array,
    signal: SortedProbabilities | SparseLogits,
  ) -> jax.Array:
    """Computes the distance at each position, float32 [R, m]."""
    del targets_Rm
    teacher_RmK = signal.sorted_probabilities()
    stored, words = teacher_RmK.shape[-1], logits_RmV.shape[-1]
    probabilities = jax.nn.softmax(logits_RmV / self.config.temperature)
    largest = jax.lax.top_k(probabilities, min(stored, words))[0]
    # A teacher may have more words than the student.
    student_RmK = jnp.pad(largest, [(0, 0), (0, 0), (0, max(stored - words, 0))])
    difference_RmK = student_RmK - teacher_RmK
    # Both sum to one with their tails, whose difference is that of the others.
    tail_Rm = jnp.abs(jnp.sum(difference_RmK, axis=-1))
    return jnp.sum(jnp.abs(difference_RmK), axis=-1) + tail_Rm
