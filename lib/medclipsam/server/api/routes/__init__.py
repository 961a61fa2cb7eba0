"""The routes of `medclipsam serve`: those of MONAI Label, checked and off the event loop, and own ones."""
