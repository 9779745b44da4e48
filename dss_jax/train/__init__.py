"""The sharded trainer: mesh, optimizer, step, loop, checkpoints, metrics."""
