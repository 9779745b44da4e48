"""The `dss` command."""
