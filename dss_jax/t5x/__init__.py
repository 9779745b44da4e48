"""The same job under T5X's own trainer, for those who have T5X installed (docs/t5x.md)."""
