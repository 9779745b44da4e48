"""Self-distillation from the student's last decoder layer to earlier ones."""

from dss_jax.config.schema import TARGET_KINDS, LossConfig, T5Config
from dss_jax.errors import UserError
from dss_jax.losses.base import Term
from dss_jax.losses.response import ResponseLoss
from dss_jax.losses.step_by_step import kind_shares


def self_layers_terms(
  name: str, weight: float, config: LossConfig, student: T5Config, source: str
) -> tuple[Term, ...]:
  """Returns terms by which chosen decoder layers learn the next tokens of the last one.

  A layer's distribution is that of its output through the final norm and the same output matrix;
  the last layer's gets no gradient (Zhang et al. 2019, "Be your own teacher", equation 5). The
  divergence is LossConfig.response's. Each layer is a pass over the vocabulary of its own, and has
  an equal share of the weight.

  Raises UserError for a layer that is not an earlier one.
  """
  last = student.num_decoder_layers
  layers = config.self_layers.layers
  if layers is None:
    layers = (last // 2,)
  wrong = [layer for layer in layers if not 1 <= layer < last]
  if wrong or not layers or len(set(layers)) < len(layers):
    mend = f"give different ones of 1 to {last - 1}" if last > 1 else "leave out --kind self-layers"
    raise UserError(
      f"SelfLayersConfig.layers = {layers}: the student has {last} decoder layers, and each of "
      f"these must be before the last; {mend}"
    )
  return tuple(
    Term(
      f"{name}_{layer}_{TARGET_KINDS[kind]}",
      weight * share / len(layers),
      (kind,),
      ResponseLoss(config.response),
      source,
      layer,
    )
    for layer in layers
    for kind, share in kind_shares(config.alpha)
  )
