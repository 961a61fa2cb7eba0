"""The text tower of CLIPs on a SAM's embedding, against `open_clip.CLIP`."""

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import nn

from medclipsam.encoders.text_tower import TwoTowerClip


def test_names_and_numbers_are_those_of_open_clip() -> None:
    torch.manual_seed(0)
    reference = open_clip.CLIP(
        embed_dim=16,
        vision_cfg=CLIPVisionCfg(image_size=8, patch_size=8, width=8, layers=1, head_width=8),
        text_cfg=CLIPTextCfg(context_length=12, vocab_size=30, width=24, layers=2, heads=3),
    ).eval()
    clip = TwoTowerClip(
        nn.Flatten(), embed_dim=16, context_length=12, vocab_size=30, width=24, layers=2, heads=3
    ).eval()
    text_state = {key: value for key, value in reference.state_dict().items() if not key.startswith("visual.")}
    clip.load_state_dict(text_state)
    texts = torch.randint(1, 28, (5, 12))
    # the greatest id ends a text
    texts[torch.arange(5), torch.tensor([3, 11, 7, 1, 5])] = 29
    with torch.no_grad():
        expected = reference.encode_text(texts)
        torch.testing.assert_close(clip.encode_text(texts), expected, rtol=1e-4, atol=1e-5)
        unit = clip.encode_text(texts, normalize=True)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(clip.encode_image(torch.ones(2, 1, 2, 2), normalize=True), torch.full((2, 4), 0.5))
