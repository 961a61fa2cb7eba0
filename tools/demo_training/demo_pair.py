"""Make the demo weights again: `python -m tools.demo_training.demo_pair clip|sam|all --out DIR [--quick]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_training.demo_pair", description=__doc__)
    parser.add_argument("model", choices=("clip", "sam", "all"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the weights")
    parser.add_argument("--quick", action="store_true", help="a few steps, to try the code; the weights are of no use")
    parser.add_argument("--threads", type=int, help="CPU threads (all by default)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        import torch

        torch.set_num_threads(chosen.threads)
    if chosen.model in ("clip", "all"):
        from tools.demo_training.train_clip import ClipRecipe, train_clip

        train_clip(chosen.out, ClipRecipe.quick() if chosen.quick else None, device=chosen.device)
    if chosen.model in ("sam", "all"):
        from tools.demo_training.train_sam import SamRecipe, train_sam

        train_sam(chosen.out, SamRecipe.quick() if chosen.quick else None, device=chosen.device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
