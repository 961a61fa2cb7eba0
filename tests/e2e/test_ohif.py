"""The bundled OHIF viewer in a real browser on a real PACS: text, overlay, clicks, brush, and the label in the PACS."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from playwright.sync_api import APIResponse, Browser, Page, Request, Response, Route

from medclipsam.demo.dicom import DicomPhantom
from medclipsam.targets import TargetSet, label_table

TOKEN = "annotator-token-0123456789"
NEXT_SAMPLE = 'button:text-is("Next Sample")'
# Where voxels of the image that is shown lie in the page, and which image it is.
_SHOWN = """columnsAndRows => {
    const viewport = cornerstone.getRenderingEngines()[0].getViewports()[0];
    // to click an entry at the end of a list, Playwright may scroll what a person cannot, and the image with it
    viewport.canvas.scrollIntoView();
    const { left, top } = viewport.canvas.getBoundingClientRect();
    const { imageData } = viewport.getImageData();
    const plane = Math.round(imageData.worldToIndex(viewport.getCamera().focalPoint)[2]);
    const points = columnsAndRows.map(([column, row]) => {
        const [x, y] = viewport.worldToCanvas(imageData.indexToWorld([column, row, plane]));
        return [x + left, y + top];
    });
    const instance = cornerstone.metaData.get('instance', viewport.getCurrentImageId());
    return { points, instance: instance.SOPInstanceUID };
}"""
# What is in the masks on the page: the picture, the frame and the segments of each plane, and the segments' names.
_MASKS = """() => {
    const { segments, representationData } = cornerstoneTools.segmentation.state.getSegmentation('1');
    const planes = representationData.Labelmap.imageIds.map(id => {
        const image = cornerstone.cache.getImage(id);
        const reference = image.referencedImageId;
        const instance = cornerstone.metaData.get('instance', reference).SOPInstanceUID;
        const frame = Number(/frames[/](\\d+)/.exec(reference)[1]);
        return { instance, frame, rows: image.rows, segments: Array.from(image.voxelManager.getScalarData()) };
    });
    return { planes, names: Object.fromEntries(Object.values(segments).map(each => [each.segmentIndex, each.label])) };
}"""
_DRAWN = f"() => ({_MASKS})().planes.flatMap(plane => plane.segments).reduce((sum, segment) => sum + segment, 0)"
_IMAGE = "() => cornerstone.getRenderingEngines()[0].getViewports()[0].getCurrentImageId()"
# Whether a click on the first viewport would be taken as a point.
_PROBES = """() => {
    const [viewport] = cornerstone.getRenderingEngines()[0].getViewports();
    const group = cornerstoneTools.ToolGroupManager.getToolGroupForViewport(viewport.id, viewport.renderingEngineId);
    return group.getActivePrimaryMouseButtonTool() === 'ProbeMONAILabel';
}"""


@pytest.fixture(scope="module")
def ohif_server(start: Callable[..., Any], orthanc: Any) -> Any:
    """`medclipsam serve` on the PACS; it asks its users for a token."""

    def command(studies: Path, port: int) -> Sequence[str]:
        return [sys.executable, "-m", "medclipsam", "serve", "--studies", orthanc.url, "--port", str(port)]

    return start(
        command,
        MEDCLIPSAM_TOKEN=TOKEN,
        MONAI_LABEL_DICOMWEB_USERNAME=orthanc.user,
        MONAI_LABEL_DICOMWEB_PASSWORD=orthanc.password,
    )


@dataclass
class Viewer:
    """One study in one window of the viewer, and what an annotator does with it."""

    page: Page
    url: str
    requests: list[Request] = field(default_factory=list)
    failures: dict[str, str | None] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    visited: bool = False

    def open(self, study: str) -> None:
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study}")
        self.connect()

    def connect(self) -> None:
        """Connect the panel of the page that is being opened."""
        self.page.wait_for_selector("#monailabelServerURL")
        self.page.wait_for_function(
            "() => window.cornerstone?.getRenderingEngines()?.[0]?.getViewports()[0]?.getCurrentImageId()"
        )
        # what else would lie over the image: the notice for new visitors, messages, and the overlay's letters
        if not self.visited:
            self.page.click("text=Confirm and Hide")
            self.visited = True
        self.page.add_style_tag(content="[data-sonner-toaster], .overlay-text, .viewport-overlay {display: none}")
        with self.page.expect_response(lambda answer: answer.url.endswith("/info/")):
            self.page.click(".settingsTable button")
        self.page.wait_for_function("() => cornerstoneTools.segmentation.state.getSegmentations().length")
        # the panel gives the segments their colours one second after it has made them
        self.page.wait_for_timeout(1200)

    def prompt(self, **options: str) -> Response:
        self.page.click("text=Options / Configurations")
        self.page.select_option("select[name=selectName]", "text_prompt")
        for key, value in options.items():
            self.page.fill(f"#infertext_prompt{key}", value)
        self.page.click('button:text-is("Confirm")')
        return self._answer("/infer/text_prompt", 'button[title="Run Segmentation"]')

    def point(self, label: str, column: int, row: int) -> Response:
        """Click a voxel of the image that is shown for a label, and run `refine`."""
        self.page.click('label:has-text("Point Prompts")')
        self.page.click(f'tr.clickable-row:has(td:text-is("{label}"))')
        self.page.wait_for_function(_PROBES)
        (x, y), *_ = self.shown([(column, row)])["points"]
        # a mouse knows whole pixels
        self.page.mouse.click(round(x), round(y))
        # a volume's cross-hairs are annotations too
        self.page.wait_for_function(
            "() => cornerstoneTools.annotation.state.getAllAnnotations()"
            ".filter(annotation => annotation.metadata.toolName === 'ProbeMONAILabel').length === 1"
        )
        return self._answer("/infer/refine", 'button[title="Run PointPrompts"]')

    def paint(self, label: str, column: int, row: int) -> None:
        """Click a voxel of the image that is shown with the brush."""
        self.page.click('[data-cy="panelSegmentationWithTools-btn"]')
        self.page.click(f'[data-cy="data-row"] >> text="{label}"')
        self.page.click('[data-cy="Brush"]')
        (x, y), *_ = self.shown([(column, row)])["points"]
        before = self.page.evaluate(_DRAWN)
        self.page.mouse.click(x, y)
        # it is drawn a moment later
        self.page.wait_for_function(f"before => ({_DRAWN})() !== before", arg=before)

    def scroll(self, images: int = 1) -> None:
        """Go on to the next image of those that are scrolled through, or back."""
        before = self.page.evaluate(_IMAGE)
        (x, y), *_ = self.shown([(50, 50)])["points"]
        self.page.mouse.move(x, y)
        self.page.mouse.wheel(0, 100 * images)
        self.page.wait_for_function(f"before => ({_IMAGE})() !== before", arg=before)
        self.page.wait_for_timeout(500)

    def show_film(self, film: DicomPhantom) -> None:
        """Show the second radiograph of the study, which has the third thumbnail."""
        self.page.locator('[data-cy="study-browser-thumbnail"]').nth(2).dblclick()
        self.page.wait_for_function(f"() => ({_SHOWN})([]).instance === '{film.files[0].SOPInstanceUID}'")

    def save(self) -> Response:
        return self._answer("/datastore/label", '[data-cy="SaveLabel"]')

    def told(self, sentence: str) -> None:
        """Wait until a notice says something."""
        self.page.wait_for_function("sentence => document.body?.textContent.includes(sentence)", arg=sentence)

    def request(self, method: str, path: str, **more: Any) -> APIResponse:
        answer: APIResponse = getattr(self.page.context.request, method)(f"{self.url}{path}", **more)
        assert answer.ok, answer.text()
        return answer

    def propose(self, series: str, labels: np.ndarray, names: dict[str, int], folder: Path) -> None:
        """Put a label of the series on the server as a model makes it ahead."""
        image, label = folder / "image.nii.gz", folder / "label.nii.gz"
        image.write_bytes(self.request("get", f"/datastore/image?image={series}").body())
        made = SimpleITK.GetImageFromArray(labels)
        made.CopyInformation(SimpleITK.ReadImage(image))
        SimpleITK.WriteImage(made, label)
        listed = [{"name": name, "idx": number} for name, number in names.items()]
        params = {"model": "network", "label_info": listed, "params": {"label_names": names}}
        self.request(
            "put",
            f"/datastore/label?image={series}&tag=original",
            multipart={
                "label": {"name": "label.nii.gz", "mimeType": "application/gzip", "buffer": label.read_bytes()},
                "params": json.dumps(params),
            },
        )

    def masks(self, phantom: DicomPhantom, **other: int) -> np.ndarray:
        """Return what the masks on the page hold in the server's numbers, uint8 [n, H, W], planes as in the phantom."""
        found = self.page.evaluate(_MASKS)
        table = {**label_table(TargetSet.load()), **other}
        numbers = np.zeros(256, np.uint8)
        for segment, name in found["names"].items():
            numbers[int(segment)] = table.get(name, 0)
        order = {str(file.SOPInstanceUID): place for place, file in enumerate(phantom.files)}
        planes = [plane for plane in found["planes"] if plane["instance"] in order]
        planes.sort(key=lambda plane: (order[plane["instance"]], plane["frame"]))
        return np.stack([numbers[np.array(plane["segments"]).reshape(plane["rows"], -1)] for plane in planes])

    def saved_label(self, series: str) -> np.ndarray:
        """Return the series' final label as the server reads it back, uint8 [n, H, W]."""
        address = f"{self.url}/datastore/label?label={series}&tag=final"
        answer = self.page.context.request.get(address)
        assert answer.ok, answer.text()
        return read_label(answer.body(), ".nii.gz")

    def shown(self, points: Sequence[tuple[int, int]]) -> dict[str, Any]:
        told: dict[str, Any] = self.page.evaluate(_SHOWN, [list(point) for point in points])
        return told

    def overlay(self, shape: tuple[int, int]) -> np.ndarray:
        """Return for each voxel of the image that is shown whether colour lies over it now, bool [H, W]."""
        first, down, right = np.array(self.shown([(0, 0), (0, 1), (1, 0)])["points"])
        rows, columns = np.indices(shape)
        where = first + rows.ravel()[:, None] * (down - first) + columns.ravel()[:, None] * (right - first)
        screen = np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(int)
        x, y = np.rint(where).astype(int).T
        found = screen[y.clip(0, screen.shape[0] - 1), x.clip(0, screen.shape[1] - 1)]
        return (found.max(axis=1) - found.min(axis=1) > 40).reshape(shape)

    def has_colour(self, shape: tuple[int, int], row: int, column: int, *, there: bool = True) -> bool:
        """Return whether colour lies over a voxel, or none does, as soon as it is drawn so."""
        for _ in range(40):
            if bool(self.overlay(shape)[row, column]) == there:
                return True
            self.page.wait_for_timeout(500)
        return False

    def outside(self) -> list[str]:
        """Return the requests that left for another server, which the page's policy must have kept back."""
        return [
            request.url
            for request in self.requests
            if not request.url.startswith((self.url, "data:", "blob:")) and self.failures.get(request.url) != "csp"
        ]

    def _answer(self, path: str, button: str) -> Response:
        with self.page.expect_response(lambda answer: path in answer.url) as waiting:
            self.page.click(button)
        answer = waiting.value
        assert answer.ok, answer.text()
        # the mask is drawn after the answer has come
        self.page.wait_for_timeout(800)
        return answer


@pytest.fixture
def viewer(browser: Browser, ohif_server: Any) -> Iterator[Viewer]:
    credentials: Any = {"username": "annotator", "password": TOKEN}
    context = browser.new_context(viewport={"width": 1200, "height": 700}, http_credentials=credentials)
    page = context.new_page()
    page.set_default_timeout(120_000)
    made = Viewer(page, ohif_server.url)
    page.on("request", lambda request: made.requests.append(request))  # noqa: PLW0108
    page.on("requestfailed", lambda request: made.failures.update({request.url: request.failure}))
    page.on("pageerror", lambda error: made.errors.append(str(error)))
    yield made
    context.close()
    assert made.outside() == []
    assert made.errors == []


def sent_params(answer: Response) -> dict[str, Any]:
    """Return the JSON object of the form that the answer is for."""
    form = answer.request.post_data or ""
    found: dict[str, Any] = json.loads(form.split('name="params"')[1].strip().splitlines()[0])
    return found


def label_map(answer: Response) -> np.ndarray:
    """Return the mask of an answer, uint8 [n, H, W]."""
    return read_label(answer.body(), ".nrrd")


def read_label(content: bytes, suffix: str) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file.name))


def segmentations(orthanc: Any, study: str) -> list[pydicom.Dataset]:
    """Return the SEG objects of a study in the PACS."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}}
    with orthanc.session() as session:
        found = session.post(f"{orthanc.root}/tools/find", json=query, timeout=30).json()
        files = [session.get(f"{orthanc.root}/instances/{name}/file", timeout=30).content for name in found]
    return [pydicom.dcmread(io.BytesIO(file)) for file in files]


def newest(stored: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
    return max(stored, key=lambda each: (each.ContentDate, each.ContentTime, each.InstanceNumber))


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum())


@pytest.mark.parametrize(
    ("name", "text", "label", "structure"),
    [
        ("chest-ct-1", "lungs", "lungs CT", "lungs"),
        ("brain-mri-1", "brain", "brain", "brain"),
        ("chest-xray-1", "both lungs", "lungs x-ray", "lungs"),
        ("breast-us-1", "breast tumour", "breast tumour", "breast tumour"),
    ],
)
def test_text_clicks_and_saving(
    viewer: Viewer, orthanc: Any, pacs_phantoms: Any, name: str, text: str, label: str, structure: str
) -> None:
    phantom = pacs_phantoms[name]
    truth = phantom.masks[structure]
    number = TargetSet.load().get(label).label
    viewer.open(phantom.study_uid)
    before = viewer.overlay(truth.shape[1:])
    plane = next(k for k, file in enumerate(phantom.files) if file.SOPInstanceUID == viewer.shown([])["instance"])
    # one plane of a volume, to be quick
    answer = viewer.prompt(text=text, **({"planes": str(plane)} if len(phantom.files) > 1 else {}))
    assert f"image={phantom.series_uid}&" in answer.request.url
    assert sent_params(answer)["text"] == text
    assert number in label_map(answer)[plane]
    assert "found" in unquote(answer.headers["x-sentence"])
    drawn = viewer.overlay(truth.shape[1:]) & ~before
    assert dice(drawn, truth[plane]) > 0.6
    # all that is coloured is the mask's, but for pixels of rounding
    assert dice(drawn, label_map(answer)[plane] == number) > 0.95

    # a click where nothing was found
    away = np.argwhere(~drawn & ~truth[plane] & ~before)
    row, column = (int(index) for index in away[np.abs(away - np.array(truth.shape[1:]) / 2).sum(axis=1).argmin()])
    answer = viewer.point(label, column, row)
    assert sent_params(answer)[label] == [[column, row, plane]]
    mended = label_map(answer)
    assert mended[plane, row, column] == number
    assert viewer.overlay(truth.shape[1:])[row, column]

    viewer.save()
    [stored] = segmentations(orthanc, phantom.study_uid)
    assert stored.ReferencedSeriesSequence[0].SeriesInstanceUID == phantom.series_uid
    assert [(each.SegmentLabel, each.SegmentAlgorithmType) for each in stored.SegmentSequence] == [
        (label, "SEMIAUTOMATIC")
    ]
    assert np.array_equal(viewer.saved_label(phantom.series_uid), mended)

    if name != "chest-ct-1":
        return
    # opened anew, the label is there to be corrected: clicks go on from it, and the correction takes its place
    viewer.open(phantom.study_uid)
    viewer.told("The saved label of this image is shown")
    assert np.array_equal(viewer.masks(phantom), mended)
    away = np.argwhere((mended[plane] == 0) & (mended[plane, ::-1] == 0) & ~before)
    row, column = (int(index) for index in away[np.abs(away - np.array(truth.shape[1:]) / 2).sum(axis=1).argmin()])
    answer = viewer.point(label, column, row)
    corrected = label_map(answer)
    assert corrected[plane, row, column] == number
    assert dice(corrected == number, mended == number) > 0.5
    viewer.save()
    last = newest(segmentations(orthanc, phantom.study_uid))
    referred = last.ReferencedInstanceSequence
    [replaced] = [item.ReferencedSOPInstanceUID for item in referred if "PurposeOfReferenceCodeSequence" in item]
    assert replaced == stored.SOPInstanceUID
    assert np.array_equal(viewer.saved_label(phantom.series_uid), corrected)


def test_a_frame_of_a_loop_is_painted_and_a_click_takes_away(viewer: Viewer, orthanc: Any, pacs_phantoms: Any) -> None:
    phantom = pacs_phantoms["breast-us-loop-1"]
    frames, rows, columns = phantom.masks["breast tumour"].shape
    number = TargetSet.load().get("breast tumour").label
    viewer.open(phantom.study_uid)
    viewer.scroll()
    assert viewer.page.evaluate(_IMAGE).endswith("/frames/2")
    viewer.paint("breast tumour", columns // 2, rows // 2)
    assert viewer.has_colour((rows, columns), rows // 2, columns // 2)

    # no model has given a mask yet: what the click mends is what was painted
    row, column = rows // 2 - 6, columns // 2 + 6
    answer = viewer.point("background", column, row)
    params = sent_params(answer)
    assert [name for name, value in params.items() if isinstance(value, list)] == ["background"]
    assert params["background"] == [[column, row, 1]]
    mended = label_map(answer)
    assert mended[1, row, column] == 0
    assert mended[1, rows // 2 + 3, columns // 2 - 3] == number
    assert viewer.has_colour((rows, columns), row, column, there=False)
    drawn = viewer.overlay((rows, columns))
    around = np.s_[rows // 2 - 15 : rows // 2 + 15, columns // 2 - 15 : columns // 2 + 15]
    assert dice(drawn[around], mended[1][around] == number) > 0.8

    viewer.save()
    kept = viewer.saved_label(phantom.series_uid)
    assert kept.shape == (frames, rows, columns)
    assert np.array_equal(kept, mended)
    assert sorted(set(np.nonzero(kept)[0].tolist())) == [1]
    [stored] = segmentations(orthanc, phantom.study_uid)
    assert stored.ReferencedSeriesSequence[0].SeriesInstanceUID == phantom.series_uid
    assert stored.SegmentSequence[0].SegmentAlgorithmName == "SAM by clicks"

    viewer.open(phantom.study_uid)
    viewer.told("The saved label of this image is shown")
    assert np.array_equal(viewer.masks(phantom), kept)


def test_a_proposal_is_shown_and_the_next_sample_opens_once_it_is_saved(
    viewer: Viewer, orthanc: Any, pacs_phantoms: Any, several_pictures: Sequence[DicomPhantom], tmp_path: Path
) -> None:
    orthanc.store(content for picture in several_pictures for content in picture.contents())
    phantom, (_, picture, _, film) = pacs_phantoms["brain-mri-2"], several_pictures
    brain, tumour = (label_table(TargetSet.load())[name] for name in ("brain", "brain tumour"))
    # no axis of it is a mirror image of itself, and one label's name is none of the server's
    drawn = np.random.default_rng(3).choice([0, 0, 0, brain, 77], phantom.masks["brain"].shape).astype(np.uint8)
    drawn[:, :40] = 0
    names = {"brain": brain, "my cyst": 77, "brain tumour": tumour}
    viewer.propose(phantom.series_uid, drawn, names, tmp_path)

    viewer.open(phantom.study_uid)
    viewer.told("nobody has looked at it yet")
    assert np.array_equal(viewer.masks(phantom, **{"my cyst": 77}), drawn)

    # what is drawn keeps the page where it is until it is saved
    everything = viewer.request("get", "/datastore/?output=all").json()["objects"]
    wanted = [str(each.files[0].SOPInstanceUID) for each in (picture, film)]
    for image in everything.keys() - set(wanted):
        viewer.request("put", f"/rounds/leases?image={image}&client_id=colleague")
    viewer.request("put", f"/rounds/leases?image={wanted[1]}&client_id=colleague")
    viewer.paint("brain", 64, 20)
    here = viewer.page.url
    viewer.page.click(NEXT_SAMPLE)
    viewer.told("Save it, and the next image is opened.")
    assert viewer.page.url == here
    viewer.page.keyboard.press("Escape")
    painted = viewer.masks(phantom, **{"my cyst": 77})
    assert (painted != drawn).any()
    with viewer.page.expect_navigation(url="**/ohif/monai-label?**"):
        viewer.page.click('[data-cy="SaveLabel"]')
    assert np.array_equal(viewer.saved_label(phantom.series_uid), painted)
    [stored] = segmentations(orthanc, phantom.study_uid)
    # what nobody has changed is the model's still
    assert {segment.SegmentLabel: segment.SegmentAlgorithmType for segment in stored.SegmentSequence} == {
        "brain": "SEMIAUTOMATIC",
        "brain tumour": "AUTOMATIC",
        "my cyst": "AUTOMATIC",
    }
    assert stored.ContentDescription == "Absent: brain tumour"

    # a picture of one of the study's two series, and the next one without anything to be saved
    viewer.connect()
    assert f"StudyInstanceUIDs={picture.study_uid}&SeriesInstanceUIDs={picture.series_uid}&" in viewer.page.url
    assert viewer.shown([])["instance"] == wanted[0]
    viewer.request("delete", f"/rounds/leases?image={wanted[1]}&client_id=colleague")
    with viewer.page.expect_navigation(url="**/ohif/monai-label?**"):
        viewer.page.click(NEXT_SAMPLE)
    viewer.connect()
    assert f"SeriesInstanceUIDs={film.series_uid}&" in viewer.page.url
    assert viewer.shown([])["instance"] == wanted[1]


def test_each_picture_of_a_series_has_a_mask_of_its_own(
    viewer: Viewer, orthanc: Any, several_pictures: Sequence[DicomPhantom]
) -> None:
    """Two ultrasound pictures, which are scrolled through, and two radiographs, each with a thumbnail of its own."""
    orthanc.store(content for picture in several_pictures for content in picture.contents())
    _, breast, _, film = several_pictures
    viewer.open(breast.study_uid)
    shape = breast.masks["breast tumour"].shape[1:]
    nothing = viewer.overlay(shape)
    viewer.scroll()
    before = viewer.overlay(shape)
    instance = str(breast.files[0].SOPInstanceUID)
    assert viewer.shown([])["instance"] == instance
    answer = viewer.prompt(text="breast tumour")
    assert f"image={instance}&" in answer.request.url
    found = label_map(answer)
    assert found.shape == (1, *shape)
    assert dice(viewer.overlay(shape) & ~before, found[0] > 0) > 0.95
    away = next(place for place in np.argwhere(found[0] == 0) if place.min() > 30)
    answer = viewer.point("breast tumour", int(away[1]), int(away[0]))
    assert f"image={instance}&" in answer.request.url
    assert sent_params(answer)["breast tumour"] == [[away[1], away[0], 0]]
    found = label_map(answer)
    viewer.save()
    assert np.array_equal(viewer.saved_label(instance), found)
    breast_label = found

    viewer.scroll(-1)
    assert np.array_equal(viewer.overlay(shape), nothing)

    viewer.show_film(film)
    instance = str(film.files[0].SOPInstanceUID)
    viewer.page.wait_for_timeout(800)
    answer = viewer.prompt(text="both lungs")
    assert f"image={instance}&" in answer.request.url
    found = label_map(answer)
    assert dice(viewer.overlay(found.shape[1:]), found[0] > 0) > 0.95
    viewer.save()
    assert np.array_equal(viewer.saved_label(instance), found)
    film_label = found

    # opened anew, each picture gets its own label when it is shown
    viewer.open(breast.study_uid)
    viewer.scroll()
    viewer.told("The saved label of this image is shown")
    assert np.array_equal(viewer.masks(breast), breast_label)
    assert not viewer.masks(several_pictures[0]).any()
    viewer.show_film(film)
    viewer.page.wait_for_function(
        f"({_MASKS})().planes.find(plane => plane.instance === '{instance}')?.segments.some(Boolean)"
    )
    assert np.array_equal(viewer.masks(film), film_label)
    stored = segmentations(orthanc, breast.study_uid)
    referenced = {
        str(each.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID) for each in stored
    }
    assert referenced == {str(breast.files[0].SOPInstanceUID), instance}


def test_what_is_refused_is_told(viewer: Viewer, pacs_phantoms: Any) -> None:
    """Of a study that has a label by now: its image is shown, and no DICOM SEG, which has no place."""
    phantom = pacs_phantoms["chest-xray-1"]
    asked: list[Route] = []
    viewer.page.route("**/datastore/label?label=*", lambda route: asked.append(route))  # noqa: PLW0108

    def answer(**given: Any) -> None:
        viewer.page.wait_for_timeout(200)
        (asked.pop().fulfill if given else asked.pop().continue_)(**given)

    # a label that does not fit, one that cannot be fetched, and one that comes when something is drawn already
    viewer.open(phantom.study_uid)
    assert viewer.shown([])["instance"] == phantom.files[0].SOPInstanceUID
    assert viewer.page.locator('[data-cy^="study-browser-thumbnail"]').count() == 1
    answer(body="NRRD0004\ntype: unsigned char\ndimension: 3\nsizes: 2 1 1\nencoding: raw\n\nAB")
    viewer.told(f"It has 2 x 1 x 1 voxels, the image {' x '.join(map(str, phantom.masks['lungs'].shape[::-1]))}.")
    viewer.page.click(".settingsTable button")
    viewer.page.wait_for_timeout(1500)
    answer(status=502, json={"detail": "The DICOMweb server does not answer."})
    viewer.told("The label of this image cannot be shown. The DICOMweb server does not answer.")
    assert not viewer.masks(phantom).any()
    viewer.page.click(".settingsTable button")
    viewer.page.wait_for_timeout(1500)
    viewer.paint("finding 1", 60, 60)
    painted = viewer.masks(phantom)
    answer()
    viewer.told("which is not shown, since its mask has been drawn on.")
    assert np.array_equal(viewer.masks(phantom), painted)
    viewer.page.unroute("**/datastore/label?label=*")
    viewer.page.click('button[title="Run Segmentation"]')
    viewer.page.wait_for_function("""() => document.body.textContent.includes("Option 'text' cannot be")""")
