"""From saved labels to the next image and the next network: rounds, scoring and training."""
