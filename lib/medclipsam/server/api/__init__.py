"""The HTTP interface: routes, log-in and middleware."""
