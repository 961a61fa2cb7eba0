"""MONAI Label adapters: the only package that imports `monailabel`."""
