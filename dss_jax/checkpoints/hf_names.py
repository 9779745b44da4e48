"""The names of T5's weights in Hugging Face's checkpoints and in ours."""

from dss_jax.checkpoints.arrays import StoredArray
from dss_jax.config.schema import T5Config

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# The modules of a layer, and their place in Hugging Face's sublayers.
_ENCODER_LAYER = {
  "attention": "0.SelfAttention",
  "pre_attention_layer_norm": "0.layer_norm",
  "mlp": "1.DenseReluDense",
  "pre_mlp_layer_norm": "1.layer_norm",
}
_DECODER_LAYER = {
  "self_attention": "0.SelfAttention",
  "pre_self_attention_layer_norm": "0.layer_norm",
  "encoder_decoder_attention": "1.EncDecAttention",
  "pre_cross_attention_layer_norm": "1.layer_norm",
  "mlp": "2.DenseReluDense",
  "pre_mlp_layer_norm": "2.layer_norm",
}
SHARED = "shared.weight"
LM_HEAD = "lm_head.weight"
# Further names of the embedding table in some files, and a bias that is not used.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def hf_names(config: T5Config) -> dict[str, str]:
  """Returns Hugging Face's name of each of our weights."""
  names = {"token_embedder.embedding": SHARED}
  if not config.logits_via_embedding:
    names["decoder.logits_dense.kernel"] = LM_HEAD
  stacks = (
    ("encoder", config.num_encoder_layers, _ENCODER_LAYER),
    ("decoder", config.num_decoder_layers, _DECODER_LAYER),
  )
  for stack, layers, modules in stacks:
    names[f"{stack}.{stack}_norm.scale"] = f"{stack}.final_layer_norm.weight"
    for layer in range(layers):
      block = f"{stack}.block.{layer}.layer"
      for module, theirs in modules.items():
        for ours, leaf in _leaves(module, config):
          names[f"{stack}.layers_{layer}.{module}.{ours}"] = f"{block}.{theirs}{leaf}.weight"
      if layer == 0 or not config.shared_relpos_bias:
        owner = stack if config.shared_relpos_bias else f"{stack}.layers_{layer}"
        bias = f"{block}.0.SelfAttention.relative_attention_bias.weight"
        names[f"{owner}.relpos_bias.rel_embedding"] = bias
  return names


def _leaves(module: str, config: T5Config) -> list[tuple[str, str]]:
  if module.endswith("layer_norm"):
    return [("scale", "")]
  if module == "mlp":
    gated = len(config.mlp_activations) > 1
    inputs = [f"wi_{i}" for i in range(len(config.mlp_activations))] if gated else ["wi"]
    return [(f"{name}.kernel", f".{name}") for name in (*inputs, "wo")]
  return [(f"{ours}.kernel", f".{theirs}") for ours, theirs in _ATTENTION.items()]


def transposed(name: str, array: StoredArray) -> StoredArray:
  """Converts a weight between the two conventions: kernels are transposed.

  Embeddings and norms are the same in both.
  """
  matrix = name.endswith((".kernel", ".rel_embedding")) and len(array.shape) == 2
  return array.transposed() if matrix else array
