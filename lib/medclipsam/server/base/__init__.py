"""Errors, settings and the workspace: what the rest of the server is built on."""
