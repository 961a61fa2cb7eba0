"""Many studies at once: on one machine, on the nodes of a cluster, or a part of them in each job of an array."""
