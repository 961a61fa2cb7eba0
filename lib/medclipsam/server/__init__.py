"""MONAI Label adapters: the app, its tasks and the `serve` command; the only room that imports `monailabel`."""
