"""The image encoder runs once for each plane and weights; memory is bounded."""

import threading

import numpy as np
import pytest
import torch

from medclipsam.base.errors import InputError
from medclipsam.sam import Embedding, EmbeddingCache, SamModel


def embedding(n_bytes: int) -> Embedding:
    return Embedding(torch.zeros(n_bytes // 4), (8, 8), (8, 8))


def key(name: str) -> tuple[str, str, str]:
    return (name, "weights", "sam-64")


def test_a_second_prompt_on_a_plane_does_not_run_the_encoder(model: SamModel) -> None:
    calls: list[int] = []
    model.network.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    plane = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)

    first = model.decode(model.embed(plane), [[3, 3, 30, 30]])
    second = model.decode(model.embed(plane.copy()), [[3, 3, 30, 30]])

    assert len(calls) == model.encoder_runs == 1
    np.testing.assert_array_equal(first.mask, second.mask)


def test_another_plane_or_the_same_bytes_in_another_shape_is_encoded(model: SamModel) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    model.embed(plane)
    model.embed(255 - plane)
    model.embed(plane.reshape(60, 40, 3))
    assert model.encoder_runs == 3


def test_a_view_that_is_not_contiguous_is_the_plane_it_shows(model: SamModel) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    model.embed(np.ascontiguousarray(plane[:, ::-1]))
    model.embed(plane[:, ::-1])
    assert model.encoder_runs == 1


def test_models_that_share_a_cache_do_not_share_embeddings(model: SamModel) -> None:
    plane = np.zeros((40, 60, 3), np.uint8)
    other_weights = SamModel(model.network, identity="weights-1", cache=model.cache)
    other_preprocessing = SamModel(model.network, identity="weights-0", preprocessing="medsam", cache=model.cache)
    for each in (model, other_weights, other_preprocessing):
        each.embed(plane)
    assert [each.encoder_runs for each in (model, other_weights, other_preprocessing)] == [1, 1, 1]
    assert len(model.cache) == 3
    SamModel(model.network, identity="weights-1", cache=model.cache).embed(plane)
    assert len(model.cache) == 3


def test_the_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(max_bytes=300)
    for name in "abc":
        cache.put(key(name), embedding(100))
    cache.get(key("a"))
    cache.put(key("d"), embedding(100))
    assert set(cache.keys()) == {key("c"), key("a"), key("d")}
    assert cache.get(key("b")) is None


def test_the_bytes_kept_never_exceed_the_bound() -> None:
    cache = EmbeddingCache(max_bytes=1000)
    sizes = np.random.default_rng(0).integers(1, 120, 200) * 4
    for index, size in enumerate(sizes):
        cache.put(key(str(index % 17)), embedding(int(size)))
        kept = list(map(cache.get, cache.keys()))
        assert cache.nbytes == sum(entry.nbytes for entry in kept if entry is not None) <= 1000
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_an_embedding_larger_than_the_bound_is_not_kept_and_drives_out_nothing() -> None:
    cache = EmbeddingCache(max_bytes=100)
    cache.put(key("small"), embedding(80))
    cache.put(key("large"), embedding(104))
    assert cache.keys() == [key("small")]


def test_a_bound_of_zero_keeps_nothing(model: SamModel) -> None:
    model.cache = EmbeddingCache(max_bytes=0)
    plane = np.zeros((40, 60, 3), np.uint8)
    model.embed(plane)
    model.embed(plane)
    assert (model.encoder_runs, len(model.cache)) == (2, 0)


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        EmbeddingCache(max_bytes=-1)


def test_entries_can_be_kept_on_the_cpu(model: SamModel) -> None:
    model.cache = EmbeddingCache(device="cpu")
    model.embed(np.zeros((40, 60, 3), np.uint8))
    kept = model.cache.get(model.cache.keys()[0])
    assert kept is not None
    assert kept.features.device.type == "cpu"


def test_threads_that_ask_for_one_plane_run_the_encoder_once(model: SamModel) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    start = threading.Barrier(8)
    results: list[Embedding] = []

    def ask() -> None:
        start.wait()
        results.append(model.embed(plane))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.encoder_runs == 1
    assert all(result is results[0] for result in results)


@pytest.mark.parametrize(
    "plane",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_plane_is_refused(model: SamModel, plane: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8 and shape"):
        model.embed(plane)
