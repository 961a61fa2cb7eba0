"""What of a CLIP is trained: all of it, its projections, or low-rank updates that are merged at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from medclipsam.base.errors import WeightsError
from medclipsam.base.extras import MissingExtraError
from medclipsam.encoders import Encoder
from medclipsam.encoders.open_clip_adapter import PROJECTIONS
from medclipsam.finetune.options import FinetuneOptions

# The model's own scale and bias of a cosine are no part of our losses, which have their own.
_LEFT_ALONE = frozenset({"logit_scale", "logit_bias"})
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TunableClip:
    """A CLIP that is being fine-tuned.

    Batch norms keep their statistics, so that a batch may go through in chunks and validation sees the same model.

    Parameters
    ----------
    encoder : Encoder
        Its model is changed in place; `close` freezes it again.
    options : FinetuneOptions
        The method.

    Attributes
    ----------
    parameters : dict of str to torch.nn.Parameter
        What is trained.

    Raises
    ------
    InputError
        If peft is needed and not installed.
    WeightsError
        If the model has no part that the method trains.
    """

    def __init__(self, encoder: Encoder, options: FinetuneOptions) -> None:
        self.encoder = encoder
        self.method = options.method
        self._model: Any = encoder.model
        self._lora: Any = None
        self._model.requires_grad_(False)
        if options.method == "lora":
            self._lora = _with_lora(self._model, options)
            wanted = [name for name, _ in self._model.named_parameters() if "lora_" in name]
        elif options.method == "heads":
            wanted = [name for name, _ in self._model.named_parameters() if name.startswith(PROJECTIONS)]
        else:
            wanted = [name for name, _ in self._model.named_parameters() if name not in _LEFT_ALONE]
        if not wanted:
            raise WeightsError(f"The CLIP {encoder.name!r} has nothing that method {options.method!r} trains.")
        everything = dict(self._model.named_parameters())
        self.parameters = {name: everything[name].requires_grad_(True) for name in wanted}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.encoder.device

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameters for an optimiser; biases and norms do not decay."""
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def train(self) -> None:
        """Switch dropout on where the trained part has any."""
        self._model.train(self.method != "heads")
        for module in self._model.modules():
            if isinstance(module, _BATCH_NORMS):
                module.eval()

    def eval(self) -> None:
        """Switch to inference."""
        self._model.eval()

    def encode(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and text features, [B, E] each, not normalised."""
        return self._model.encode_image(images.to(self.device)), self._model.encode_text(tokens.to(self.device))

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of what is trained, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take trained values from `state`."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def close(self) -> Encoder:
        """Add low-rank updates to the weights, freeze the model, and return an encoder that remembers nothing."""
        if self._lora is not None:
            self._lora.merge_and_unload()
            self._lora = None
        self._model.eval().requires_grad_(False)
        self.encoder.forget()
        return self.encoder


def _with_lora(model: Any, options: FinetuneOptions) -> Any:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise MissingExtraError("peft", "Method 'lora'") from None
    targets = list(_lora_targets(model))
    if not targets:
        raise WeightsError("The CLIP has no attention or feed-forward layers for low-rank updates.")
    # a whole number by its annotation, but any number divides
    scale: Any = options.lora_alpha
    config = LoraConfig(r=options.lora_rank, lora_alpha=scale, target_modules=targets, bias="none")
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        return LoraModel(model, config, "default")


def _lora_targets(model: nn.Module) -> Iterator[str]:
    """Yield the names of the layers that get updates: linear ones in the towers' blocks, and torch's attention.

    A projection into the common space is no block. Torch's attention holds a linear layer whose weight it uses without
    calling it; its own updates cover that one.
    """
    attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    yield from attentions
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.startswith(PROJECTIONS):
            continue
        if not any(name.startswith(f"{attention}.") for attention in attentions):
            yield name
