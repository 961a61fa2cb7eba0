"""Makes the small weights of the package again; not part of the wheel."""
