"""Networks with random weights, and their outputs by plain calls."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from medclipsam.imaging import MedicalImage
from medclipsam.training.ensemble import ENSEMBLE_FILE, write_members
from medclipsam.training.examples import PreparedImage
from medclipsam.training.network import Network
from medclipsam.training.plan import Plan


def untrained(plan: Plan, folder: Path, members: int = 3) -> Path:
    """Write an ensemble of random members with confident, different opinions."""
    folder.mkdir()
    plan.write(folder)
    states = []
    for seed in range(members):
        torch.manual_seed(seed)
        network = Network(plan)
        with torch.no_grad():
            network.body.output_block.conv.conv.weight *= 3
        states.append(network.state_dict())
    write_members(states, folder / ENSEMBLE_FILE)
    return folder


def logits_by_hand(folder: Path, plan: Plan, image: MedicalImage, members: int = 3) -> np.ndarray:
    """Return each member's outputs, float64 [members, planes, channels, h, w], by plain calls."""
    prepared = PreparedImage(image, plan)
    inputs = torch.stack([prepared.plane(index) for index in range(image.n_planes)])
    tensors = load_file(folder / ENSEMBLE_FILE)
    made = []
    for member in range(members):
        network = Network(plan).eval()
        network.load_state_dict({k[2:]: v.float() for k, v in tensors.items() if k.startswith(f"{member}.")})
        with torch.no_grad():
            made.append(network(inputs)[0].double().numpy())
    return np.stack(made)
