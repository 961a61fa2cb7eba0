"""The app in this process, without HTTP and with a stand-in for the pipeline."""

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from fastapi import HTTPException

from medclipsam.active.strategies import STRATEGIES
from medclipsam.base.errors import MedClipSamError, OptionError, TargetError
from medclipsam.server.base.audit import Caller
from medclipsam.server.inference.infer_request import SessionImage, Upload
from medclipsam.server.inference.tasks import task_name
from medclipsam.server.monai_label.app import MedClipSamApp
from medclipsam.targets import TargetSet, label_table

MakeApp = Callable[..., MedClipSamApp]


def refusal(app: MedClipSamApp, **request: Any) -> HTTPException:
    with pytest.raises(HTTPException) as error:
        app.infer({"model": "text_prompt", "image": "chest", "text": "heart", **request})
    assert isinstance(error.value.detail, str)
    assert "Traceback" not in error.value.detail
    return error.value


def test_monai_label_finds_the_class_in_the_apps_main_and_it_pickles() -> None:
    from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

    main = Path(__file__).parents[3] / "apps" / "medclipsam" / "main.py"
    found = get_class_of_subclass_from_file("main", str(main), "MONAILabelApp")
    assert found is MedClipSamApp
    assert pickle.loads(pickle.dumps(found)) is MedClipSamApp


def test_info_tells_labels_models_and_their_options(app: MedClipSamApp) -> None:
    info = json.loads(json.dumps(app.info()))
    table = label_table(TargetSet.load())
    assert info["labels"] == [*sorted(table, key=table.__getitem__), "background"]
    assert info["labels"][-9:-1] == [f"finding {number}" for number in range(1, 9)]
    assert set(info["models"]) == {"text_prompt", "refine", "lungs_x_ray", "breast_tumour"}
    prompt, lungs = info["models"]["text_prompt"], info["models"]["lungs_x_ray"]
    assert prompt["type"] == lungs["type"] == "segmentation"
    assert prompt["labels"] == table
    assert lungs["labels"] == {"lungs x-ray": table["lungs x-ray"]}
    assert prompt["config"]["text"] == ""
    assert "text" not in lungs["config"]
    assert prompt["config"]["saliency"] == ["auto", "m2ib", "m2ib_token", "nib", "patch_text"]
    assert list(info["strategies"]) == [*STRATEGIES, "adjudication"]
    assert list(info["trainers"]) == ["network", "finetune_clip"]
    assert list(info["scoring"]) == ["embedding", "presence", "uncertainty", "disagreement"]


def test_every_image_format_is_listed_by_its_name(app: MedClipSamApp) -> None:
    assert sorted(app.datastore().list_images()) == ["broken", "chest", "film", "stack"]


def test_files_of_one_name_have_ids_of_their_own_and_the_name_alone_is_refused(
    make_app: MakeApp, studies: Path
) -> None:
    shutil.copy(studies / "chest.png", studies / "stack.png")
    app = make_app()
    own = {name for name in app.datastore().list_images() if name.startswith("stack")}
    assert len(own) == 2
    assert "stack" not in own
    error = refusal(app, image="stack")
    assert error.status_code == 404
    assert all(name in error.detail for name in own)


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("image", ["chest", "film", "stack"])
def test_mask_lies_on_the_image(infer: Any, studies: Path, image: str, extension: str) -> None:
    mask, params = infer(image, text="heart", result_extension=extension)
    source = SimpleITK.ReadImage(next(studies.glob(f"{image}.*")))
    pixels = SimpleITK.GetArrayFromImage(source).reshape(mask.shape)
    assert np.array_equal(mask > 0, pixels > 128)
    assert set(np.unique(mask)) == {0, *params["label_names"].values()}


def test_volume_mask_has_the_volumes_geometry(app: MedClipSamApp, studies: Path) -> None:
    answer = app.infer({"model": "text_prompt", "image": "stack", "text": "heart", "result_extension": ".nrrd"})
    source, mask = SimpleITK.ReadImage(studies / "stack.nii.gz"), SimpleITK.ReadImage(answer["file"])
    for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, part)() == pytest.approx(getattr(source, part)())
    Path(answer["file"]).unlink()


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_asked_number_type_is_written(infer: Any, extension: str, dtype: str) -> None:
    mask, _ = infer("stack", text="heart", result_extension=extension, result_dtype=dtype)
    assert mask.dtype == np.dtype(dtype)


def test_nrrd_without_compression_for_ohif(app: MedClipSamApp) -> None:
    heads = []
    for compress in (False, True):
        request = {"model": "text_prompt", "image": "stack", "text": "heart", "result_extension": ".nrrd"}
        file = Path(app.infer({**request, "result_compress": compress})["file"])
        heads.append(file.read_bytes().split(b"\n\n")[0])
        file.unlink()
    assert b"encoding: raw" in heads[0]
    assert b"encoding: gzip" in heads[1]


def test_params_are_json_with_names_evidence_and_latencies(infer: Any) -> None:
    _, params = infer(text="heart", seed="3")
    json.dumps(params, allow_nan=False)
    assert list(params["label_names"]) == ["heart"]
    assert params["options"]["seed"] == 3
    assert params["weights"] == {"score": None, "size": 3}
    assert set(params["latencies"]) == {"pre", "infer", "write", "total"}


def test_target_task_asks_for_its_target_and_takes_its_label(infer: Any, loaded: Any) -> None:
    mask, params = infer("film", "lungs_x_ray")
    label = TargetSet.load().get("lungs x-ray").label
    assert params["label_names"] == {"lungs x-ray": label}
    assert mask.max() == label
    assert [text for text, _ in loaded[0].asked] == ["lungs x-ray"]


def test_target_task_refuses_an_image_of_another_modality(app: MedClipSamApp) -> None:
    error = refusal(app, model="breast_tumour", image="film", text=None)
    assert error.status_code == 400
    assert "US" in error.detail
    assert "DX" in error.detail


def test_pipeline_is_loaded_at_the_first_request_and_shared(app: MedClipSamApp, infer: Any, loaded: Any) -> None:
    app.info()
    assert loaded == []
    infer(text="heart")
    infer("film", "lungs_x_ray")
    infer(text="left lung")
    assert len(loaded) == 1
    assert loaded.arguments == [{"weights": "demo", "device": "cpu"}]


def test_configured_defaults_reach_the_pipeline_and_the_form(make_app: MakeApp, loaded: Any) -> None:
    app = make_app(presence_threshold="0.25", visual_prompt="points", weights="biomedclip", device="cpu")
    config = app.info()["models"]["text_prompt"]["config"]
    assert config["presence_threshold"] == 0.25
    assert config["visual_prompt"] == ["points", "auto", "boxes", "both", "mask"]
    Path(app.infer({"model": "text_prompt", "image": "chest", "text": "heart", "beta": "2"})["file"]).unlink()
    _, options = loaded[0].asked[0]
    assert (options.presence_threshold, options.visual_prompt, options.beta) == (0.25, "points", 2.0)
    assert loaded.arguments == [{"weights": "biomedclip", "device": "cpu"}]


@pytest.mark.parametrize(
    ("request_", "status", "names"),
    [
        ({"model": "left_ear"}, 404, ["'left_ear'", "text_prompt"]),
        ({"model": ""}, 404, ["text_prompt"]),
        ({"model": ["text_prompt"]}, 404, ["text_prompt"]),
        ({"image": "nobody"}, 404, ["'nobody'"]),
        ({"image": "../studies/chest"}, 404, ["'../studies/chest'"]),
        ({"image": ""}, 400, ["image id"]),
        ({"image": None}, 400, ["image id"]),
        ({"image": "broken"}, 400, ["broken"]),
        ({"text": ""}, 400, ["'text'"]),
        ({"text": "explode"}, 400, ["explode"]),
        ({"colour": "red"}, 400, ["'colour'", "'red'", "saliency"]),
        ({"beta": "much"}, 400, ["'beta'", "'much'"]),
        ({"postprocess": "magic"}, 400, ["'postprocess'", "kmeans, threshold, crf"]),
        ({"label_tag": "../../x"}, 400, ["'label_tag'", "'../../x'"]),
        ({"save_label": "perhaps"}, 400, ["'save_label'"]),
    ],
)
def test_refusals_name_what_is_wrong(
    app: MedClipSamApp, request_: dict[str, Any], status: int, names: list[str]
) -> None:
    error = refusal(app, **request_)
    assert error.status_code == status
    for name in names:
        assert name in error.detail


def test_a_request_opens_no_file_of_the_machine(app: MedClipSamApp, studies: Path) -> None:
    elsewhere = str(studies / "chest.png")
    assert refusal(app, image=elsewhere).status_code == 404
    assert refusal(app, image=elsewhere, session={"image": elsewhere}).status_code == 404
    assert refusal(app, image="/etc/passwd").status_code == 404


def test_the_file_of_a_session_is_opened_by_monai_labels_own_route_and_no_other(
    infer: Any, app: MedClipSamApp, studies: Path, tmp_path: Path
) -> None:
    session = tmp_path / "sessions" / "0c5"
    session.mkdir(parents=True)
    shutil.copy(studies / "film.dcm", session)
    assert infer(str(session / "film.dcm"), text="heart")[0].any()
    (session / "link").symlink_to(studies / "film.dcm")
    with tempfile.NamedTemporaryFile(suffix=".png") as other:
        other.write((studies / "chest.png").read_bytes())
        other.flush()
        for path in (other.name, session / "link", session / ".." / ".." / "studies" / "film.dcm", session / "gone"):
            assert refusal(app, image=str(path)).status_code == 404


@pytest.mark.parametrize("where", [Upload, SessionImage])
def test_a_file_that_a_route_received_is_segmented_and_nothing_is_saved(
    app: MedClipSamApp, studies: Path, tmp_path: Path, where: Any
) -> None:
    sent = Path(shutil.copy(studies / "chest.png", tmp_path / "sent.png"))
    asked = app.request("text_prompt", {"text": "heart", "save_label": True}, where(sent), Caller())
    done = app.run_infer(asked)
    assert done.label is None
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(done.file)).any()
    done.file.unlink()
    assert app.datastore().get_labels_by_image_id("sent") == {}


def test_an_id_means_the_study_and_not_a_file_of_the_working_folder(
    infer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chest").write_text("no image")
    monkeypatch.chdir(tmp_path)
    mask, _ = infer("chest", text="heart")
    assert mask.sum() > 0


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("model", ["text_prompt", "refine"])
def test_a_mask_that_is_written_otherwise_than_it_was_made_is_not_saved(
    app: MedClipSamApp, monkeypatch: pytest.MonkeyPatch, extension: str, model: str
) -> None:
    import medclipsam.imaging

    write = medclipsam.imaging.write_mask

    def lose_a_voxel(labels: np.ndarray, *arguments: Any, **more: Any) -> Path:
        labels = labels.copy()
        labels.flat[np.flatnonzero(labels)[0]] = 0
        return write(labels, *arguments, **more)

    asked: dict[str, Any] = {"model": model, "image": "stack", "save_label": True, "result_extension": extension}
    asked |= {"text": "heart"} if model == "text_prompt" else {"heart": [[40, 15, 0]], "use_last_mask": False}
    Path(app.infer(dict(asked))["file"]).unlink()
    before = Path(app.datastore().get_label_uri("stack", "original")).read_bytes()
    monkeypatch.setattr("medclipsam.imaging.write_mask", lose_a_voxel)
    with pytest.raises(HTTPException):
        app.infer(dict(asked))
    assert Path(app.datastore().get_label_uri("stack", "original")).read_bytes() == before


def test_label_is_saved_when_asked(app: MedClipSamApp) -> None:
    request = {"model": "text_prompt", "image": "stack", "text": "heart", "save_label": "true", "label_tag": "pre-1"}
    answer = app.infer(request)
    Path(answer["file"]).unlink()
    assert answer["label"] == "stack"
    saved = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(app.datastore().get_label_uri("stack", "pre-1")))
    assert saved.max() == answer["params"]["label_names"]["heart"]
    info = app.datastore().get_label_info("stack", "pre-1")
    assert info["params"]["label_names"] == answer["params"]["label_names"]


def test_batch_without_a_gpu_labels_all_images_and_names_the_bad_one(app: MedClipSamApp) -> None:
    # the request that MONAI Label's batch route makes when the client says nothing
    request = {"device": "cuda", "multi_gpu": True, "gpus": "all", "logging": "WARNING", "save_label": True}
    request |= {"label_tag": "original", "max_workers": 1, "max_batch_size": 0, "images": "all"}
    done = app.batch_infer({"model": "text_prompt", "text": "heart", **request})
    assert sorted(done) == ["broken", "chest", "film", "stack"]
    assert "broken" in done["broken"]["error"]
    for image in ("chest", "film", "stack"):
        assert done[image]["label"] == image
        assert Path(app.datastore().get_label_uri(image, "original")).exists()


@pytest.mark.parametrize(
    ("request_", "status"), [({"model": "left_ear", "text": "x"}, 404), ({"model": "text_prompt"}, 400)]
)
def test_batch_is_refused_before_the_first_image(app: MedClipSamApp, request_: dict[str, Any], status: int) -> None:
    with pytest.raises(HTTPException) as error:
        app.batch_infer({**request_, "images": "all"})
    assert error.value.status_code == status


def test_batch_in_a_subprocess_ends_with_the_sentence(app: MedClipSamApp, caplog: pytest.LogCaptureFixture) -> None:
    app.server_mode(False)
    with pytest.raises(SystemExit) as stop:
        app.batch_infer({"model": "text_prompt", "images": "all"})
    assert stop.value.code == 2
    assert "'text'" in caplog.records[-1].getMessage()


def test_next_sample_is_an_image_and_an_unknown_strategy_is_named(app: MedClipSamApp) -> None:
    assert app.next_sample({"strategy": "random"})["id"] in app.datastore().list_images()
    with pytest.raises(HTTPException, match="'cleverest'") as error:
        app.next_sample({"strategy": "cleverest"})
    assert error.value.status_code == 404


@pytest.mark.parametrize("conf", [{"colour": "red"}, {"targets": "left ear"}, {"beta": "-1"}, {"targets_file": "/no"}])
def test_bad_settings_stop_the_start(make_app: MakeApp, conf: dict[str, str]) -> None:
    with pytest.raises(MedClipSamError) as error:
        make_app(**conf)
    assert next(iter(conf.values())) in str(error.value) or isinstance(error.value, OptionError)


def test_users_targets_file_adds_to_tasks_and_labels(make_app: MakeApp, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("targets:\n- {name: left ear, label: 150, captions: [a left ear]}\n")
    info = make_app(targets="left ear", targets_file=str(file)).info()
    assert info["models"]["left_ear"]["labels"] == {"left ear": 150}
    assert info["models"]["text_prompt"]["labels"]["left ear"] == 150


def test_a_target_named_like_a_model_is_refused(make_app: MakeApp, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("targets:\n- {name: text prompt, label: 150, captions: [a page of text]}\n")
    with pytest.raises(TargetError, match="'text_prompt'"):
        make_app(targets="text prompt", targets_file=str(file))


def test_a_target_named_twice_is_one_model(make_app: MakeApp) -> None:
    models = make_app(targets="Lungs X-ray, lungs x-ray").info()["models"]
    assert sorted(models) == ["lungs_x_ray", "refine", "text_prompt"]


@pytest.mark.parametrize(
    ("target", "model"),
    [("lungs x-ray", "lungs_x_ray"), ("Breast tumour", "breast_tumour"), ("(große) Lunge", "große_lunge")],
)
def test_task_names_are_slugs(target: str, model: str) -> None:
    assert task_name(target) == model
