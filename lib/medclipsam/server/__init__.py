"""The MONAI Label server app, in layers: each imports only the ones before it, see `pyproject.toml`."""
