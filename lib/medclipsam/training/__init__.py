"""The weakly supervised network: planning, training, checkpoint ensemble, uncertainty, publishing."""
