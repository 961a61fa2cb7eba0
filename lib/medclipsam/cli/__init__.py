"""The command `medclipsam`: a module for each group of its commands."""
