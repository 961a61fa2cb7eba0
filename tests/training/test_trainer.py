import json
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medclipsam.base.checkpoint import OtherTrainingError
from medclipsam.base.errors import CancelledError, InputError, TrainingError
from medclipsam.training import trainer
from medclipsam.training.ensemble import ENSEMBLE_FILE, Ensemble
from medclipsam.training.plan import make_plan
from medclipsam.training.planes import open_planes
from medclipsam.training.trainer import Progress, Sampler, memory_errors, read_training, train

CLASSES = {"disc": 1, "square": 2}


def weights(folder):
    return load_file(folder / ENSEMBLE_FILE)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_training_of_seconds_learns(make_examples, small, tmp_path):
    options = small.replace(epochs=6, iterations=25, keep=1, base_filters=8, batch_size=6, momentum=0.9)
    examples, validation = make_examples(16), make_examples(6, seed=1)
    seen: list[Progress] = []
    plan = make_plan(examples, CLASSES, options)
    folder = train(examples, plan, options, tmp_path / "net", validation=validation, progress=seen.append)
    curve = [step for step in seen if step.stage == "train"]
    assert [step.epoch for step in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].eta == 0
    assert curve[-1].loss < 0.5 * curve[0].loss
    assert min(curve[-1].dice.values()) > 0.8
    # on images it has never seen, at their own size; where there is no disc it finds next to none
    ensemble = Ensemble.load(folder, device="cpu")
    for example in validation:
        image = example.read()
        truth, made = example.labels(image, 2), ensemble.predict(image).labels
        assert made.shape == truth.shape
        for index in (1, 2):
            wrong = ((made == index) != (truth == index)).sum()
            assert wrong < 0.35 * max((truth == 2).sum(), 1)


def test_the_folder_holds_the_network_and_how_it_came_about(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    folder = train(examples, plan, small, tmp_path / "net", validation=make_examples(2, seed=1))
    assert left(folder) == ["ensemble.safetensors", "log.jsonl", "plan.json", "training.json"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    record = read_training(folder)
    assert log == record["curve"]
    assert record["members"] == [1, 2, 3, 4]
    assert record["images"] == {"final": 4, "original": 0}
    assert record["options"]["epochs"] == 4
    assert [entry["rate"] for entry in log][::2] == [0.1, 0.1]
    tensors = weights(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert Ensemble.load(folder, device="cpu").members == 4


def test_the_same_seed_gives_the_same_weights_and_another_does_not(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    one, two, other = (
        weights(train(examples, plan, small.replace(seed=seed), tmp_path / f"net{place}"))
        for place, seed in enumerate((0, 0, 1))
    )
    assert same(one, two)
    assert not same(one, other)


def test_a_stopped_training_goes_on_as_if_nothing_had_been(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    whole = train(examples, plan, small, tmp_path / "whole")
    steps = iter([False] * 11 + [True] * 100)  # four images, then in the third epoch
    with pytest.raises(CancelledError, match=r"epoch 3 of 4.*resumed"):
        train(examples, plan, small, tmp_path / "net", should_stop=lambda: next(steps))
    assert "state.pt" in left(tmp_path / "net")
    seen: list[Progress] = []
    folder = train(examples, plan, small, tmp_path / "net", progress=seen.append)
    assert [step.epoch for step in seen] == [3, 4]  # and no image is read again
    assert same(weights(folder), weights(whole))
    assert left(folder) == left(whole)
    log = [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2, 3, 4]


def test_a_finished_training_is_not_done_again(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    folder = train(examples, plan, small, tmp_path / "net")
    before = (folder / ENSEMBLE_FILE).stat().st_mtime_ns
    (folder / "state.pt").write_bytes(b"left by a kill at the very end")
    seen: list[Progress] = []
    train(examples, plan, small, folder, progress=seen.append)
    assert not seen
    assert (folder / ENSEMBLE_FILE).stat().st_mtime_ns == before
    assert "state.pt" not in left(folder)


def test_a_training_starts_from_an_earlier_network(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    parent = train(examples, plan, small.replace(iterations=20), tmp_path / "parent")
    still = small.replace(learning_rate=1e-8, restart_rate=1e-8)
    child = weights(train(examples, plan, still, tmp_path / "child", start=parent))
    last = {name: tensor for name, tensor in weights(parent).items() if name.startswith("3.")}
    for name, tensor in last.items():
        torch.testing.assert_close(child[f"0.{name[2:]}"], tensor, atol=2e-3, rtol=1e-2)
    # it is another training than one that starts from nothing
    with pytest.raises(OtherTrainingError):
        train(examples, plan, still, tmp_path / "child")


def test_a_network_of_another_plan_is_no_start(make_examples, small, tmp_path):
    examples = make_examples(4)
    parent = train(examples, make_plan(examples, CLASSES, small), small, tmp_path / "parent")
    wider = small.replace(base_filters=8)
    with pytest.raises(TrainingError, match="another plan"):
        train(examples, make_plan(examples, CLASSES, wider), wider, tmp_path / "child", start=parent)


def test_another_training_in_the_folder_is_refused_and_can_be_started_over(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    folder = train(examples, plan, small, tmp_path / "net")
    before = weights(folder)
    with pytest.raises(OtherTrainingError):
        train(examples[:3], plan, small, folder)
    assert same(weights(folder), before)
    train(examples[:3], plan, small, folder, resume=False)
    assert not same(weights(folder), before)


def test_a_damaged_state_is_told(make_examples, small, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "state.pt").write_bytes(b"PK\3\4 cut off")
    examples = make_examples(4)
    with pytest.raises(TrainingError, match="damaged"):
        train(examples, make_plan(examples, CLASSES, small), small, tmp_path / "net")


def test_killed_in_mid_training_it_goes_on_to_the_same_weights(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    whole = train(examples, plan, small, tmp_path / "whole")
    folder = tmp_path / "net"
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=train, args=(examples, plan, small, folder), kwargs={"progress": there.send})
    child.start()
    while here.poll(60):
        step = here.recv()
        if (step.stage, step.epoch) == ("train", 2):
            os.kill(child.pid, signal.SIGKILL)
            break
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    assert not (folder / ENSEMBLE_FILE).exists()
    # a write that the kill cut off must not matter either
    (folder / ".state.pt.part").write_bytes(b"half")
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"epoch": 3, "lo')
    seen: list[Progress] = []
    train(examples, plan, small, folder, progress=seen.append)
    assert seen[0].stage == "train"
    assert seen[0].epoch >= 3
    assert same(weights(folder), weights(whole))
    assert left(folder) == left(whole)


def _member(rank, port, examples, plan, options, folder, answers):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        seen: list[int] = []
        train(examples, plan, options, folder, progress=lambda p: seen.append(p.epoch))
        answers.put((rank, seen, None))
    except Exception as error:
        answers.put((rank, [], str(error)))
    finally:
        torch.distributed.destroy_process_group()


def _in_two_processes(examples, plan, options, folder):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [
        context.Process(target=_member, args=(rank, port, examples, plan, options, folder, answers))
        for rank in range(2)
    ]
    for child in children:
        child.start()
    try:
        return {rank: (seen, error) for rank, seen, error in (answers.get(timeout=120) for _ in children)}
    finally:
        for child in children:
            child.join(timeout=30)
            child.kill()


def test_two_processes_train_one_network(make_examples, small, tmp_path, monkeypatch):
    examples = make_examples(4)
    small = small.replace(amp=False)  # 16 bits would round the two sums differently
    plan = make_plan(examples, CLASSES, small)
    said = _in_two_processes(examples, plan, small, tmp_path / "net")
    assert said[0] == ([1, 2, 3, 4, 1, 2, 3, 4], None)  # four images, four epochs
    assert said[1] == ([], None)  # one of them speaks and writes
    assert read_training(tmp_path / "net")["processes"] == 2
    # one process that draws what both drew, and takes the mean of their losses, comes to the same weights
    plain = trainer.SegmentationLoss.forward

    def draws_of_both(self, epoch, planes):
        sampler = Sampler(planes, self.plan, self.options, 2)
        for step in range(self.iterations):
            halves = [sampler.batch(np.random.default_rng([small.seed, epoch, rank, step])) for rank in (0, 1)]
            yield torch.cat([half[0] for half in halves]), torch.cat([half[1] for half in halves])

    def mean_of_both(self, levels, labels):
        halves = [plain(self, [level[part] for level in levels], labels[part]) for part in (slice(0, 2), slice(2, 4))]
        return (halves[0] + halves[1]) / 2

    monkeypatch.setattr(trainer._Work, "_batches", draws_of_both)
    monkeypatch.setattr(trainer.SegmentationLoss, "forward", mean_of_both)
    alone = weights(train(examples, plan, small, tmp_path / "alone"))
    together = weights(tmp_path / "net")
    assert together.keys() == alone.keys()
    for name, tensor in together.items():
        torch.testing.assert_close(tensor.float(), alone[name].float(), atol=2e-3, rtol=2e-2)


def test_an_error_in_the_first_process_ends_the_other(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    examples[2].image.write_bytes(b"no image")
    said = _in_two_processes(examples, plan, small, tmp_path / "net")
    assert "picture0-2.png is not an image" in said[0][1]
    assert "first process failed" in said[1][1]


def test_empty_labels_alone_teach_silence(make_examples, small, tmp_path):
    examples = make_examples(3)
    for example in examples:
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(example.mask)
    plan = make_plan(examples, CLASSES, small)
    folder = train(examples, plan, small.replace(epochs=6, iterations=10), tmp_path / "net")
    made = Ensemble.load(folder, device="cpu").predict(examples[0].read())
    assert made.labels.sum() == 0
    assert np.isfinite(made.scores["image"])


def test_labels_that_contradict_each_other_leave_the_network_unsure(make_examples, small, tmp_path):
    # the same pictures twice: once with their squares, once with nothing
    told, silent = make_examples(4), make_examples(4, name="again")
    for example in silent:
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(example.mask)
    options = small.replace(epochs=6, iterations=20, base_filters=8, momentum=0.9)
    scores = []
    for name, examples in (("told", told), ("both", [*told, *silent])):
        folder = train(examples, make_plan(examples, CLASSES, options), options, tmp_path / name)
        ensemble = Ensemble.load(folder, device="cpu")
        scores.append(np.mean([ensemble.predict(example.read()).uncertainty.sum() for example in told]))
    assert scores[1] > 1.5 * scores[0]


def test_a_bad_label_is_told_before_the_first_epoch(make_examples, small, tmp_path):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)
    Image.fromarray(np.full((48, 48), 9, np.uint8)).save(examples[1].mask)
    with pytest.raises(InputError, match="picture0-1 holds the value 9"):
        train(examples, plan, small, tmp_path / "net")
    assert "planes.bin" not in left(tmp_path / "net")


def test_weights_say_how_often_images_are_drawn(make_examples, small, tmp_path):
    examples = [replace(example, weight=float(place)) for place, example in enumerate(make_examples(4))]
    options = small.replace(foreground=0.0, augment=False).resolved()
    plan = make_plan(examples, CLASSES, options)
    planes = open_planes(examples, plan, tmp_path / "planes.bin", "key")
    images = [planes[index][0] for index in range(4)]
    sampler, counts = Sampler(planes, plan, options, 4), np.zeros(4)
    for seed in range(150):
        for patch in sampler.batch(np.random.default_rng(seed))[0]:
            counts[[torch.equal(patch, image) for image in images].index(True)] += 1
    np.testing.assert_allclose(counts / counts.sum(), np.array([0, 1, 2, 3]) / 6, atol=0.06)


def test_a_share_of_each_batch_holds_a_class_however_rare(make_examples, small, tmp_path):
    examples = make_examples(8)
    for place, example in enumerate(examples):
        label = np.zeros((48, 48), np.uint8)
        label[40:43, 2:5] = place == 0  # one image of eight, at its edge
        Image.fromarray(label).save(example.mask)
    options = small.replace(foreground=0.5, max_side=48, max_patch=16, augment=False).resolved()
    plan = make_plan(examples, CLASSES, options)
    assert plan.patch_size == (16, 16)
    sampler = Sampler(open_planes(examples, plan, tmp_path / "planes.bin", "key"), plan, options, 4)
    for seed in range(20):
        labels = sampler.batch(np.random.default_rng(seed))[1]
        assert all((label == 1).any() for label in labels[2:])


def test_balanced_classes_weigh_by_the_inverse_root_of_their_share(make_examples, small, tmp_path, monkeypatch):
    seen = []

    class Loss(trainer.SegmentationLoss):
        def __init__(self, kind, q, weights):
            seen.append(weights)
            super().__init__(kind, q, weights)

    monkeypatch.setattr(trainer, "SegmentationLoss", Loss)
    options = small.replace(class_weights="balanced", epochs=2, keep=1, iterations=1)
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, options)
    train(examples, plan, options, tmp_path / "net")
    found = plan.fingerprint["classes"]
    shares = np.array([found[name]["share_of_pixels"] for name in ("background", "disc", "square")])
    np.testing.assert_allclose(seen[0], shares**-0.5 / (shares**-0.5).mean(), rtol=1e-6)


def test_planes_of_the_same_examples_are_prepared_once(make_examples, small, tmp_path):
    examples = make_examples(2)
    plan = make_plan(examples, CLASSES, small)
    path, done = tmp_path / "planes.bin", []
    open_planes(examples, plan, path, "key", step=done.append)
    open_planes(examples, plan, path, "key", step=done.append)
    assert done == [1, 2]
    open_planes(examples, plan, path, "other", step=done.append)
    assert done == [1, 2, 1, 2]
    path.with_suffix(".json").unlink()  # as a kill between the two files leaves them
    assert len(open_planes(examples, plan, path, "other", step=done.append)) == 2


def test_a_loss_that_is_no_number_is_told(make_examples, small, tmp_path, monkeypatch):
    examples = make_examples(4)
    plan = make_plan(examples, CLASSES, small)

    def broken(self, levels, labels):
        return levels[0].mean() * float("nan")

    monkeypatch.setattr(trainer.SegmentationLoss, "forward", broken)
    with pytest.raises(TrainingError, match=r"no longer a number in epoch 1.*restart_rate"):
        train(examples, plan, small, tmp_path / "net")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_short_memory_is_told_with_what_to_do(make_examples, small, error):
    plan = make_plan(make_examples(2), CLASSES, small)
    said = r"Memory ran out on cpu with batches of 4 patches of 32 x 32.*memory"
    with pytest.raises(TrainingError, match=said), memory_errors(small, plan):
        raise error


def test_other_errors_are_not_called_short_memory(make_examples, small):
    plan = make_plan(make_examples(2), CLASSES, small)
    with pytest.raises(RuntimeError, match="shape"), memory_errors(small, plan):
        raise RuntimeError("shape mismatch")


@pytest.mark.cuda
def test_a_gpu_trains_in_mixed_precision(make_examples, small, tmp_path):
    options = small.replace(device="cuda", epochs=6, iterations=25, keep=1, base_filters=8, momentum=0.9)
    examples = make_examples(16)
    folder = train(examples, make_plan(examples, CLASSES, options), options, tmp_path / "net")
    curve = read_training(folder)["curve"]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
