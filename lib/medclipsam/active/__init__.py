"""Active learning: what to label next, who works on what, and what came of each round."""

# The file of a workspace that keeps them.
LEDGER_FILE = "rounds.sqlite"
