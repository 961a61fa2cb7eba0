"""Pipelines: the steps of the method put together."""
