"""A batch that is spread over two processes has the loss, the gradient and the training of one."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from medclipsam.cli import main as cli
from medclipsam.encoders import load_folder
from medclipsam.finetune.data import Listing, prepare
from medclipsam.finetune.losses import ContrastiveLoss, gather
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions, LossOptions
from medclipsam.finetune.trainer import train

NAMES = ("dhn-nce", "infonce", "siglip")
CAPTIONS = torch.tensor([0, 1, 2, 0, 3, 4])
OPTIONS = FinetuneOptions(epochs=2, batch_size=16, learning_rate=1e-3, gallery=16, chunk_size=5)


def features():
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(6, 6, generator=generator).double(), dim=-1) for _ in range(2))


def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4, bias=False).double()


def learn(folder, clip_folder, pairs):
    encoder = load_folder(clip_folder)
    tuned = TunableClip(encoder, OPTIONS)
    done = train(tuned, *(prepare(Listing(part), encoder) for part in (pairs[:32], pairs[32:])), folder, OPTIONS)
    return done, tuned.state()


def work(rank, place, clip_folder, pairs, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    shared, (images, texts) = layer(), features()
    mine = slice(3 * rank, 3 * rank + 3)
    found = {}
    for name in NAMES:
        shared.zero_grad()
        loss = ContrastiveLoss(LossOptions(loss=name)).double()
        value = loss(gather(shared(images[mine])), gather(shared(texts[mine])), gather(CAPTIONS[mine]))
        value.backward()
        dist.all_reduce(shared.weight.grad)
        found[name] = (value.detach(), shared.weight.grad.clone())
    found["training"] = learn(Path(place) / "run", clip_folder, pairs)[1]
    torch.save(found, f"{place}/{rank}.pt")
    dist.destroy_process_group()
    # as torchrun starts a process
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = ["finetune", "run", f"{place}/pairs.csv", "--weights", str(clip_folder), "--out", f"{place}/command"]
    command += ["--device", "cpu", "--epochs", "1", "--batch-size", "12", "--gallery", "12"]
    if cli.main(command) != 0:
        raise RuntimeError("the command failed")


@pytest.fixture(scope="module")
def place(tmp_path_factory, clip_folder, listing):
    place = tmp_path_factory.mktemp("processes")
    rows = [f"{pair.path},{pair.caption.replace(',', ' of')}" for pair in listing.pairs]
    (place / "pairs.csv").write_text("\n".join(["filename,caption", *rows]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(str(place), clip_folder, listing.pairs, port), nprocs=2)
    return place


@pytest.fixture(scope="module")
def ranks(place):
    return [torch.load(place / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradient_are_those_of_one_process(name, ranks):
    shared, (images, texts) = layer(), features()
    value = ContrastiveLoss(LossOptions(loss=name)).double()(shared(images), shared(texts), CAPTIONS)
    value.backward()
    for found in ranks:
        assert float(found[name][0]) == pytest.approx(float(value.detach()), abs=1e-12)
        torch.testing.assert_close(found[name][1], shared.weight.grad, atol=1e-12, rtol=0)


def test_the_training_is_that_of_one_process(tmp_path, ranks, clip_folder, listing):
    _, weights = learn(tmp_path, clip_folder, listing.pairs)
    for found in ranks:
        for name, value in weights.items():
            torch.testing.assert_close(found["training"][name], value, atol=2e-5, rtol=1e-3)


def test_the_command_line_joins_the_processes_and_one_writes(place):
    made = load_folder(place / "command" / "model")
    assert made.encode_texts(["a red square"]).shape == (1, 32)
    assert not list((place / "command").glob(".*part*"))
