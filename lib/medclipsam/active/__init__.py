"""Active learning: what to label next, who works on what, and what came of each round."""
