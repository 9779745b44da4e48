"""The same distillation under T5X's own trainer, if T5X is installed (docs/t5x.md)."""
