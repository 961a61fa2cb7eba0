"""What a studies folder holds: one definition for the server, training, evaluation and the command line."""
