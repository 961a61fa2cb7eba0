"""M2IB: the multi-modal information bottleneck (Wang et al., NeurIPS 2023), many planes and targets side by side.

Z [1+P, D] is the output of vision block l. With lambda = sigmoid(alpha), alpha starting at 5, and noise
eps_s ~ N(0, sigma^2),

    Z_s  = lambda Z + (1 - lambda) eps_s
    KL   = 1/2 [ (lambda Z)^2 / sigma^2 + (1 - lambda)^2 - log((1 - lambda)^2) - 1 ]
    loss = beta mean(KL) - mean_s cos(image_feature(Z_s), text_feature)

is minimised over alpha by Adam (learning rate 1); the map is the sum of KL over D at the alpha reached, the class token
dropped. Only alpha is optimised: the blocks up to l and the text run once, outside, and each step runs the blocks
after l.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from medclipsam.base.errors import OptionError
from medclipsam.encoders.towers import Tower

LEARNING_RATE = 1.0
ALPHA_START = 5.0


@dataclass(frozen=True)
class Schedule:
    """How the expectation over the noise is estimated at each Adam step.

    Attributes
    ----------
    samples : tuple of int
        Noise samples S of each step. At a step with 0 samples the network is not run: the slope of the fitting term
        with respect to lambda is kept from the step before, while that of the compression and the slope of lambda with
        respect to alpha stay exact.
    paired : bool
        Draw antithetic pairs eps and -eps, in which all odd terms of the estimate's error cancel; an odd sample out is
        the mean, eps = 0 (a first-order mean field, nearly exact in the first steps, where lambda is nearly 1).
        Otherwise the samples are independent.
    """

    samples: tuple[int, ...]
    paired: bool = False

    def __post_init__(self) -> None:
        if not self.samples or self.samples[0] < 1 or min(self.samples) < 0:
            raise OptionError("schedule", self.samples, "numbers of samples from 0, the first from 1")

    @property
    def work(self) -> int:
        """Number of runs of the blocks after the bottleneck, forward and back."""
        return sum(self.samples)

    def draw(self, step: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return the unit noise [S, *shape] of a step."""
        samples = self.samples[step]
        if not self.paired:
            return torch.randn(samples, *shape, generator=generator)
        half = torch.randn(samples // 2, *shape, generator=generator)
        return torch.cat([half, -half, torch.zeros(samples % 2, *shape)])


# The published 100 runs; and 5 runs that give nearly the same map (benchmarks/saliency.py).
PUBLISHED = Schedule((10,) * 10)
FAST = Schedule((1, 0, 0, 0, 0, 2, 0, 2, 0, 0), paired=True)


def noise_generator(seed: int, content: bytes) -> torch.Generator:
    """Return the noise source of one plane, from the seed and the plane's content alone.

    A plane alone, in a batch, in another order or on another device sees the same noise.
    """
    digest = hashlib.sha256(seed.to_bytes(8, "little") + content).digest()
    # 63 bits: torch's seeds are signed.
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def kl_divergence(z: torch.Tensor, alpha: torch.Tensor, variance: float) -> torch.Tensor:
    """Return the elementwise KL of N(lambda z, (1-lambda)^2 sigma^2) from N(0, sigma^2).

    Parameters
    ----------
    z : torch.Tensor
        [..., 1+P, D].
    alpha : torch.Tensor
        [..., 1+P, D] or [..., 1+P, 1]; lambda = sigmoid(alpha).
    variance : float
        sigma squared.

    Returns
    -------
    torch.Tensor
        As z, at least 0.
    """
    lam = torch.sigmoid(alpha)
    # sigmoid(-alpha) rather than 1 - sigmoid(alpha): its logarithm stays finite for every alpha.
    keep = torch.sigmoid(-alpha)
    return 0.5 * ((lam * z).square() / variance + keep.square() - 2 * F.logsigmoid(-alpha) - 1)


def fitting_term(
    features: torch.Tensor,
    positives: torch.Tensor,
    negatives: Sequence[torch.Tensor | None] | None,
    contrast: float,
) -> torch.Tensor:
    """Return the mean similarity [N] of unit features [N, S, E] to each pair's text, less that to its negatives."""
    fitting = torch.einsum("nse,ne->ns", features, positives).mean(dim=1)
    if not contrast or negatives is None:
        return fitting
    against = [
        fitting.new_zeros(()) if other is None else (features[row] @ other.T).mean()
        for row, other in enumerate(negatives)
    ]
    return fitting - contrast * torch.stack(against)


def m2ib_maps(
    tower: Tower,
    tokens: torch.Tensor,
    planes: Sequence[int],
    positives: torch.Tensor,
    negatives: Sequence[torch.Tensor | None] | None = None,
    *,
    generators: Sequence[torch.Generator],
    beta: Sequence[float],
    variance: float,
    layer: int,
    schedule: Schedule = PUBLISHED,
    contrast: float = 0.0,
    per_token: bool = False,
    on_step: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Return the saliency of each pair of a plane and a target on the patch grid.

    Parameters
    ----------
    tower : Tower
        The frozen vision tower.
    tokens : torch.Tensor
        [B, 1+P, D], output of block `layer` for each of B planes.
    planes : sequence of int
        For each of N pairs, its plane's row in `tokens`.
    positives : torch.Tensor
        [N, E], the unit text feature of each pair's target.
    negatives : sequence of torch.Tensor or None, optional
        For each pair the unit text features [K, E] of its negative captions; used when `contrast` > 0.
    generators : sequence of torch.Generator
        One a plane, see `noise_generator`. Targets of one plane share its noise.
    beta : sequence of float
        Trade-off of each pair.
    variance : float
        sigma squared.
    layer : int
        0-based block whose output `tokens` is.
    schedule : Schedule
        Adam steps and their noise samples.
    contrast : float
        Weight of the mean similarity to the negatives that the fitting term subtracts.
    per_token : bool
        One alpha a token instead of one an element.
    on_step : callable, optional
        Called after every step; may raise to stop.

    Returns
    -------
    torch.Tensor
        [N, rows, cols] float, at least 0, on the device of `tokens`.

    Notes
    -----
    The losses of the pairs are summed: an average would bring the gradients near Adam's eps, and a map would depend on
    how many others were computed beside it.
    """
    tokens = tokens.detach()
    n_pairs = len(planes)
    z = tokens[list(planes)]
    n_tokens, width = z.shape[1:]
    sigma = variance**0.5
    weights = torch.as_tensor(list(beta), dtype=z.dtype, device=z.device)
    alpha = torch.full((n_pairs, n_tokens, 1 if per_token else width), ALPHA_START, dtype=z.dtype, device=z.device)
    alpha.requires_grad_(True)
    adam = torch.optim.Adam([alpha], lr=LEARNING_RATE)
    used = sorted(set(planes))
    slope = torch.zeros_like(alpha)
    for step, samples in enumerate(schedule.samples):
        if samples:
            noise = {
                row: schedule.draw(step, (n_tokens, width), generators[row]).to(z.device, z.dtype) * sigma
                for row in used
            }
            eps = torch.stack([noise[row] for row in planes])
            with torch.enable_grad():
                lam = torch.sigmoid(alpha.detach()).requires_grad_(True)
                # 1 - lambda, but with the digits that it has where lambda is nearly 1.
                keep = torch.sigmoid(-alpha.detach()) + (lam.detach() - lam)
                noisy = lam[:, None] * z[:, None] + keep[:, None] * eps
                features = F.normalize(tower.suffix(noisy.flatten(0, 1), layer), dim=-1)
                fitting = fitting_term(features.unflatten(0, (n_pairs, samples)), positives, negatives, contrast)
                (slope,) = torch.autograd.grad(fitting.sum(), lam)
        with torch.enable_grad():
            compression = kl_divergence(z, alpha, variance).mean(dim=(1, 2))
            loss = (weights * compression).sum() - (slope * torch.sigmoid(alpha)).sum()
            (alpha.grad,) = torch.autograd.grad(loss, alpha)
        adam.step()
        if on_step is not None:
            on_step()
    with torch.no_grad():
        saliency = kl_divergence(z, alpha, variance).sum(dim=2)[:, tower.n_prefix_tokens :]
    return saliency.unflatten(1, tower.grid)
