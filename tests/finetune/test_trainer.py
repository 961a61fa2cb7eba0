"""Training: exact accumulation, what is trained, that it learns, and that a killed run ends as one that was not."""

import itertools
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from medclipsam.base.checkpoint import OtherTrainingError
from medclipsam.base.errors import CancelledError, InputError, OptionError, TrainingError
from medclipsam.encoders import load_folder
from medclipsam.finetune.data import Listing, prepare
from medclipsam.finetune.losses import ContrastiveLoss
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions, LossOptions
from medclipsam.finetune.trainer import accumulate, learning_rate, train


def whole_batch(pairs, count):
    loader = pairs.batches([range(count)])
    return next(iter(loader))


def gradients(tuned):
    return {name: None if p.grad is None else p.grad.clone() for name, p in tuned.parameters.items()}


@pytest.mark.parametrize(
    ("which", "method"),
    [("clip_folder", "full"), ("clip_folder", "heads"), ("clip_folder", "lora"), ("tiny_biomedclip_folder", "full")],
)
def test_chunks_give_the_gradient_of_the_whole_batch(which, method, listing, request):
    encoder = load_folder(request.getfixturevalue(which)).double()
    pairs = prepare(Listing(listing.pairs[:5]), encoder)
    tuned = TunableClip(encoder, FinetuneOptions(method=method))
    loss = ContrastiveLoss(LossOptions(loss="dhn-nce"))
    batch = whole_batch(pairs, 5)
    if method == "lora":  # an update of nothing has no gradient in its first factor
        with torch.no_grad():
            for name, parameter in tuned.parameters.items():
                if "lora_B" in name:
                    parameter.copy_(0.01 * torch.ones_like(parameter))
    found = {}
    for chunk in (None, 2):
        tuned.eval()  # dropout would differ between a batch and its parts
        for parameter in tuned.parameters.values():
            parameter.grad = None
        value = accumulate(tuned, loss, batch, chunk=chunk, seed=(0,))
        found[chunk] = (value, gradients(tuned))
    plain = loss(*tuned.encode(batch[0], batch[1]), batch[2])
    for parameter in tuned.parameters.values():
        parameter.grad = None
    plain.backward()
    for value, parts in found.values():
        assert value == pytest.approx(float(plain.detach()), abs=1e-12)
        for name, parameter in tuned.parameters.items():
            if parameter.grad is None:
                assert parts[name] is None
            else:
                torch.testing.assert_close(parts[name], parameter.grad, atol=1e-11, rtol=1e-9)


def test_chunks_have_the_same_dropout_in_both_passes(listing, tiny_biomedclip_folder):
    encoder = load_folder(tiny_biomedclip_folder).double()
    pairs = prepare(Listing(listing.pairs[:3]), encoder)
    tuned = TunableClip(encoder, FinetuneOptions())
    loss = ContrastiveLoss(LossOptions(loss="dhn-nce"))
    batch = whole_batch(pairs, 3)
    tuned.train()
    accumulate(tuned, loss, batch, chunk=1, seed=(1,))
    found = gradients(tuned)
    # the same features by hand: each chunk with its seed, in one graph
    parts = []
    for number in range(3):
        torch.manual_seed(int(np.random.SeedSequence([1, number]).generate_state(1)[0]))
        parts.append(tuned.encode(batch[0][number : number + 1], batch[1][number : number + 1]))
    for parameter in tuned.parameters.values():
        parameter.grad = None
    loss(*(torch.cat(way) for way in zip(*parts, strict=True)), batch[2]).backward()
    for name, parameter in tuned.parameters.items():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("which", ["clip_folder", "tiny_biomedclip_folder"])
def test_low_rank_updates_are_merged_exactly(which, listing, request):
    encoder = load_folder(request.getfixturevalue(which))
    names = set(encoder.model.state_dict())
    pairs = prepare(Listing(listing.pairs[:4]), encoder)
    images, tokens, _ = whole_batch(pairs, 4)
    tuned = TunableClip(encoder, FinetuneOptions(method="lora", lora_rank=2))
    trained = sum(p.numel() for p in tuned.parameters.values())
    assert trained < 0.4 * sum(p.numel() for p in encoder.model.parameters())
    before = [part.detach().clone() for part in tuned.encode(images, tokens)]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, parameter in tuned.parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    tuned.eval()
    updated = [part.detach().clone() for part in tuned.encode(images, tokens)]
    closed = tuned.close()
    assert set(closed.model.state_dict()) == names
    merged = closed.model.encode_image(images), closed.model.encode_text(tokens)
    for one, two, three in zip(before, updated, merged, strict=True):
        assert not torch.allclose(one, two, atol=1e-4)
        torch.testing.assert_close(two, three, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in closed.model.parameters())


def test_heads_are_the_two_projections(encoder, tiny_biomedclip_folder):
    assert set(TunableClip(encoder, FinetuneOptions(method="heads")).parameters) == {"visual.proj", "text_projection"}
    other = TunableClip(load_folder(tiny_biomedclip_folder), FinetuneOptions(method="heads"))
    assert set(other.parameters) == {"visual.head.proj.weight", "text.proj.0.weight", "text.proj.2.weight"}


def test_everything_but_the_scale_is_trained_and_norms_do_not_decay(encoder):
    tuned = TunableClip(encoder, FinetuneOptions())
    assert set(tuned.parameters) == {name for name, _ in encoder.model.named_parameters()} - {"logit_scale"}
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in tuned.groups(0.2)}
    assert decays[0.0] == {1}
    assert 1 not in decays[0.2]


def test_rate_rises_then_falls_to_nothing():
    options = FinetuneOptions(learning_rate=1.0, warmup=0.2)
    rates = [learning_rate(step, 50, options) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5, abs=0.01)
    assert all(one >= two for one, two in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.002


FAST = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3, "gallery": 16}


def learn(folder, encoder, listing, cancelled=None, **given):
    options = FinetuneOptions.from_mapping({**FAST, **given})
    tuned = TunableClip(encoder, options)
    pairs, held = (prepare(Listing(part), encoder) for part in (listing.pairs[:32], listing.pairs[32:]))
    return train(tuned, pairs, held, folder, options, cancelled=cancelled), tuned


def test_it_learns_and_keeps_the_best_epoch(tmp_path, encoder, listing):
    done, _ = learn(tmp_path, encoder, listing)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert done.best.score > done.before.score + 0.1
    scores = [entry["score"] for entry in done.history]
    assert done.best.score == pytest.approx(max(scores), abs=1e-6)
    assert done.best_epoch == 1 + scores.index(max(scores))


def test_where_no_epoch_is_better_the_start_stays(tmp_path, encoder, listing):
    start = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    done, _ = learn(tmp_path, encoder, listing, learning_rate=1e-12, epochs=1, weight_decay=0)
    assert (done.best_epoch, done.best.score) == (0, done.before.score)
    assert all(torch.equal(value, start[name]) for name, value in encoder.model.state_dict().items())


def test_a_run_that_was_cancelled_goes_on_to_the_same_weights(tmp_path, clip_folder, listing):
    calls = iter(range(100))
    with pytest.raises(CancelledError):
        learn(tmp_path / "a", load_folder(clip_folder), listing, cancelled=lambda: next(calls) >= 5)
    one, first = learn(tmp_path / "a", load_folder(clip_folder), listing)
    two, second = learn(tmp_path / "b", load_folder(clip_folder), listing)
    assert one.history == two.history
    for name, parameter in first.parameters.items():
        assert torch.equal(parameter, second.parameters[name])


SCRIPT = """
import pickle, sys
from pathlib import Path
import torch
# as the tests' own process: sums over several threads have other last bits
torch.set_num_threads(1)
from medclipsam.encoders import load_folder
from medclipsam.finetune.data import Listing, prepare
from medclipsam.finetune.model import TunableClip
from medclipsam.finetune.options import FinetuneOptions, LossOptions
from medclipsam.finetune.trainer import train
pairs = pickle.loads(Path(sys.argv[2]).read_bytes())
encoder = load_folder(Path(sys.argv[1]))
options = FinetuneOptions(epochs=6, batch_size=16, learning_rate=3e-3, gallery=16, checkpoint_steps=1)
sets = [prepare(Listing(part), encoder) for part in (pairs[:32], pairs[32:])]
clip = TunableClip(encoder, options)
train(clip, *sets, Path(sys.argv[3]), options, progress=lambda share, text: print(share, flush=True))
"""


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, clip_folder, listing):
    (tmp_path / "pairs").write_bytes(pickle.dumps(listing.pairs))
    command = [sys.executable, "-c", SCRIPT, str(clip_folder), str(tmp_path / "pairs"), str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert (tmp_path / "killed" / "last.pt").is_file()
    done, tuned = learn(tmp_path / "killed", load_folder(clip_folder), listing)
    whole, other = learn(tmp_path / "whole", load_folder(clip_folder), listing)
    assert done.history == whole.history
    assert all(torch.equal(p, other.parameters[name]) for name, p in tuned.parameters.items())


def test_a_folder_of_another_run_is_refused_unless_restarted(tmp_path, clip_folder, listing):
    learn(tmp_path, load_folder(clip_folder), listing, epochs=1)
    with pytest.raises(OtherTrainingError):
        learn(tmp_path, load_folder(clip_folder), listing, epochs=1, seed=5)
    (tmp_path / "last.pt").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"last\.pt"):
        learn(tmp_path, load_folder(clip_folder), listing, epochs=1)


def test_refuses_too_few_pairs(tmp_path, encoder, listing):
    tuned = TunableClip(encoder, FinetuneOptions())
    one, some = prepare(Listing(listing.pairs[:1]), encoder), prepare(Listing(listing.pairs[:4]), encoder)
    with pytest.raises(InputError, match="two pairs for training"):
        train(tuned, one, some, tmp_path, FinetuneOptions())
    with pytest.raises(InputError, match="two pairs for validation"):
        train(tuned, some, one, tmp_path, FinetuneOptions())


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_figures_go_to_the_tracker(tmp_path, clip_folder, listing, tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # would be refused
    learn(tmp_path, load_folder(clip_folder), listing, epochs=2, tracker=tracker)
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard" / "finetuning"))
        events.Reload()
        assert len(events.Scalars("loss")) == 4
        assert len(events.Scalars("retrieval")) == 2
        return
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("medclipsam").experiment_id])
    assert run.data.params["loss"] == "dhn-nce"
    assert len(client.get_metric_history(run.info.run_id, "retrieval")) == 2


@pytest.mark.cuda
def test_mixed_precision_learns_too(tmp_path, clip_folder, listing):
    done, _ = learn(tmp_path, load_folder(clip_folder, device="cuda"), listing)
    assert done.best.score > done.before.score


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "half"}, "method.*full, heads, lora"),
        ({"epochs": "2.5"}, "epochs.*whole number from 1"),
        ({"batch_size": 1}, "batch_size.*from 2"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"tau": 1}, "tau"),
        ({"loss": "dcl", "beta1": 0.1}, "beta1.*dcl"),
    ],
)
def test_options_out_of_range_are_named(given, message):
    with pytest.raises(OptionError, match=message):
        FinetuneOptions.from_mapping(given)
    assert FinetuneOptions.from_mapping({"epochs": "3", "loss": ["dcl", "infonce"], "beta1": ""}).loss == "dcl"
