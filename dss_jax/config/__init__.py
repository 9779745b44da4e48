"""The configuration of a run: its schema, the gin loader and the names of meshes."""
