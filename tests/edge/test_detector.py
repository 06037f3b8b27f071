# SPDX-License-Identifier: Apache-2.0
"""The detector in Python: what it gives, what it takes, and what it refuses."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.models import Padim, Patchcore
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from ganomaly_plugin import FeatureGANomaly, GANomaly
from ganomaly_plugin.edge import Detector, ImageTooLargeError, NotADetectorError
from ganomaly_plugin.edge.exported_model import shared_core
from ganomaly_plugin.edge.image_input import to_input
from ganomaly_plugin.edge.pipeline import start_ahead
from ganomaly_plugin.image_file import UnreadableImageError
from ganomaly_plugin.models.components.pre_processor import AntialiasedPreProcessor

from .conftest import Trained


@pytest.fixture(scope="module")
def detector(trained: Trained) -> Detector:
    """The detector with its defaults."""
    return Detector(trained.xml)


def test_agrees_with_the_engine(trained: Trained, detector: Detector) -> None:
    """Scores, labels, maps and masks of the same files."""
    predictions = [detector.predict(path) for path in trained.paths]
    scores = trained.values("pred_score")
    np.testing.assert_allclose([prediction.score for prediction in predictions], scores, atol=1e-4)
    clear = abs(scores - 0.5) > 1e-4
    labels = np.array([prediction.is_anomalous for prediction in predictions])
    np.testing.assert_array_equal(labels[clear], trained.values("pred_label")[clear])
    maps = trained.values("anomaly_map").reshape(-1, 32, 32)
    np.testing.assert_allclose([prediction.anomaly_map for prediction in predictions], maps, atol=1e-4)
    masks = np.array([prediction.mask for prediction in predictions])
    clear = abs(maps - 0.5) > 1e-4
    np.testing.assert_array_equal(masks[clear], trained.values("pred_mask").reshape(-1, 32, 32)[clear])


@pytest.mark.parametrize("size", [32, 257, 400])
def test_bfloat16_moves_scores_little(trained: Trained, detector: Detector, size: int) -> None:
    """Where the processor has bfloat16, other clients compute in it. The graph tolerates it; the detector avoids it."""
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    score = detector.predict(image[0].transpose(1, 2, 0)).score
    for precision, tolerance in (("f32", 1e-6), ("bf16", 5e-3)):
        compiled = shared_core().compile_model(trained.xml, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        assert compiled(image)["pred_score"].item() == pytest.approx(score, abs=tolerance)


def test_every_format_of_an_image_gives_the_same(trained: Trained, detector: Detector) -> None:
    """File, its content as bytes or opened, Pillow image, integers and floats, grey and colour."""
    path = trained.paths[0]
    grey = np.array(Image.open(path))
    colour = np.repeat(grey[..., np.newaxis], 3, axis=2)
    expected = detector.predict(path).score
    sixteen = grey.astype(np.uint16) * 257
    content = Path(path).read_bytes()
    arrays = (grey, grey[..., np.newaxis], colour, colour / 255, sixteen)
    contents = (content, bytearray(content), memoryview(content), BytesIO(content))
    for source in (Path(path), *contents, Image.open(path), *arrays, sixteen.astype(">u2")):
        assert detector.predict(source).score == pytest.approx(expected, abs=1e-6)
    batch = detector.predict(np.stack([colour, colour]))
    assert [prediction.score for prediction in batch] == pytest.approx([expected] * 2, abs=1e-6)


def test_stream_keeps_the_order(trained: Trained, detector: Detector) -> None:
    """Images of very different cost, several at a time."""
    sizes = [400, 8, 8, 300, 8, 8, 8, 200, 8, 8] * 5
    images = [np.full((size, size), number, dtype=np.uint8) for number, size in enumerate(sizes)]
    streamed = list(Detector(trained.xml, hint="throughput").stream(iter(images)))
    assert [int(np.asarray(prediction.source)[0, 0]) for prediction in streamed] == list(range(50))
    alone = [detector.predict(image).score for image in images]
    assert [prediction.score for prediction in streamed] == pytest.approx(alone, abs=1e-5)


def test_stream_takes_no_more_than_it_can_score(detector: Detector) -> None:
    """An endless iterable: few images are taken before the first prediction comes out."""
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 8), dtype=np.uint8)

    stream = detector.stream(endless())
    for _ in range(100):
        next(stream)
    assert taken <= 100 + 2 * 16


def test_stream_skips_unreadable_images_when_asked(tmp_path: Path, trained: Trained, detector: Detector) -> None:
    """The others come in order; without ``skip``, the error is raised."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [trained.paths[0], broken, trained.paths[1]]
    skipped: list[object] = []
    predictions = list(detector.stream(images, skip=lambda source, _: skipped.append(source)))
    assert [prediction.source for prediction in predictions] == [trained.paths[0], trained.paths[1]]
    assert skipped == [broken]
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        list(detector.stream(images))


class TestMemory:
    """Every buffer that OpenVINO sees lives as long as it may look at it."""

    def test_images_of_all_sizes_from_several_threads(self, trained: Trained) -> None:
        """Single images and streams mixed, some closed early; a fault here is a crash or a wrong score."""
        detector = Detector(trained.xml, hint="throughput")

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(50):
                images = [
                    np.full((*rng.integers(8, 400, 2), 3), level, dtype=np.uint8) for level in rng.integers(0, 256, 8)
                ]
                expected = [detector.predict(image).score for image in images[:3]]
                streamed = list(islice(detector.stream(images), int(rng.integers(3, 9))))
                assert [prediction.score for prediction in streamed[:3]] == pytest.approx(expected, abs=1e-5)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))

    def test_predictions_keep_their_values(self, detector: Detector) -> None:
        """What was given out does not change with later images."""
        images = [np.full((40, 40), level, dtype=np.uint8) for level in (0, 90, 255)]
        predictions = [detector.predict(image) for image in images]
        copies = [np.array(prediction.anomaly_map) for prediction in predictions]
        list(detector.stream(images * 5))
        for prediction, copy in zip(predictions, copies, strict=True):
            np.testing.assert_array_equal(prediction.anomaly_map, copy)


class TestSlowSources:
    """A prediction waits for no later image."""

    def test_prediction_comes_while_the_source_is_silent(self, detector: Detector) -> None:
        taken = Event()

        def camera() -> Iterator[np.ndarray]:
            for _ in range(3):
                yield np.zeros((8, 8), dtype=np.uint8)
                assert taken.wait(30), "the next image would only come after the prediction of this one"
                taken.clear()

        count = 0
        for _ in detector.stream(camera()):
            count += 1
            taken.set()
        assert count == 3

    def test_all_predictions_come_before_the_error_of_the_source(self, detector: Detector) -> None:
        def camera() -> Iterator[np.ndarray]:
            for level in range(5):
                yield np.full((8, 8), level, dtype=np.uint8)
            raise ConnectionError("the cable is out")

        levels = []
        with pytest.raises(ConnectionError, match="cable"):
            for prediction in detector.stream(camera()):
                levels.append(int(np.asarray(prediction.source)[0, 0]))
                time.sleep(0.05)  # So that the source is long through.
        assert levels == list(range(5))

    def test_stream_that_is_closed_early_lets_its_source_go(self, detector: Detector) -> None:
        closed = Event()

        def camera() -> Iterator[np.ndarray]:
            try:
                while True:
                    yield np.zeros((8, 8), dtype=np.uint8)
            finally:
                closed.set()

        stream = detector.stream(camera())
        next(stream)
        stream.close()
        assert closed.wait(30)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture of 3,000 x 2,500 pixels, as PNG, as JPEG, and with 16 bits."""
    folder = tmp_path_factory.mktemp("large")
    rows, columns = np.mgrid[:2500, :3000].astype(np.float32) / 2500
    grey = np.round(127.5 + 127.5 * np.sin(9 * rows + 5 * columns**2)).astype(np.uint8)
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in (grey, grey // 2, 255 - grey)])
    image.save(folder / "picture.png", compress_level=1)
    image.save(folder / "picture.jpg", quality=95)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png", compress_level=1)
    return folder


class TestLargeImages:
    """Pictures of many megapixels take memory that does not follow from what a graph of any size would need."""

    @pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "deep.png"])
    def test_score_is_that_of_the_whole_path(self, large: Path, detector: Detector, name: str) -> None:
        whole = shared_core().compile_model(detector.model, "CPU")(to_input(large / name))
        prediction = detector.predict(large / name)
        assert prediction.score == pytest.approx(whole["pred_score"].item(), abs=1e-3)
        np.testing.assert_allclose(prediction.anomaly_map, np.squeeze(whole["anomaly_map"]), atol=1e-3)

    def test_peak_memory(self, tmp_path: Path, trained: Trained) -> None:
        """Pillow's 4 bytes a pixel and 200 MB, 320 MB here; the whole path takes 24 bytes a pixel, 720 MB."""
        Image.new("RGB", (6000, 5000)).save(tmp_path / "black.png", compress_level=1)
        code = (
            "import resource, sys\n"
            "from ganomaly_plugin.edge import Detector\n"
            "detector = Detector(sys.argv[1])\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "detector.predict(sys.argv[2])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        command = [sys.executable, "-c", code, str(trained.xml), str(tmp_path / "black.png")]
        kilobytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert kilobytes * 1024 < 4 * 6000 * 5000 + 200e6

    def test_limit(self, large: Path, trained: Trained) -> None:
        detector = Detector(trained.xml, max_pixels=7_499_999)
        with pytest.raises(ImageTooLargeError, match=r"picture\.png' has 3000 x 2500 pixels, .* raise max_pixels"):
            detector.predict(large / "picture.png")
        with pytest.raises(ImageTooLargeError, match="deep"):
            list(detector.stream([large / "deep.png"]))

    def test_several_at_once(self, large: Path, trained: Trained) -> None:
        """A stream holds no more than its share of large pictures, and goes on after each."""
        detector = Detector(trained.xml, hint="throughput")
        scores = [prediction.score for prediction in detector.stream([large / "picture.png"] * 4)]
        assert scores == [scores[0]] * 4


def test_threshold_overrides_the_model(trained: Trained, detector: Detector) -> None:
    """A score equal to the threshold is normal."""
    score = detector.predict(trained.paths[0]).score
    assert not Detector(trained.xml, threshold=score).predict(trained.paths[0]).is_anomalous
    assert Detector(trained.xml, threshold=score - 1e-3).predict(trained.paths[0]).is_anomalous


def test_metadata(detector: Detector) -> None:
    """What the model says of itself."""
    assert detector.metadata["trained_on"] == "Digits/abnormal-8"
    assert detector.metadata["model_type"] == "AnomalyDetection"
    assert detector.metadata["resize"] == "antialiased"
    assert detector.model_threshold == 0.5
    assert len(detector.model_hash) == 16


@pytest.mark.parametrize(
    ("transforms", "whole"),
    [
        ([Resize((32, 32)), Normalize([0.5], [0.5])], True),
        ([CenterCrop(20), Resize((32, 32))], False),
        ([Resize((32, 32), antialias=False)], False),
    ],
)
def test_only_whole_images_are_shrunk_before_the_model(transforms: list[Any], whole: bool) -> None:
    """Of a picture whose edges are cut off first, the device must not shrink all."""
    assert AntialiasedPreProcessor(Compose(transforms)).starts_with_resize == whole


def test_fixed_size_model_gets_its_size(trained: Trained, tmp_path: Path, detector: Detector) -> None:
    """An export for images of one size takes others too."""
    model = shared_core().read_model(trained.xml)
    model.reshape([1, 3, 32, 32])
    openvino.save_model(model, tmp_path / "fixed.xml")
    fixed = Detector(tmp_path / "fixed.xml")
    assert fixed.input_size == (32, 32)
    # Twice antialiased is not once, but the bilinear filters of Pillow and the graph are the same.
    assert fixed.predict(trained.paths[0]).score == pytest.approx(detector.predict(trained.paths[0]).score, abs=1e-3)


def test_detector_of_anomalib(tmp_path: Path, trained: Trained) -> None:
    """A model of others: anomalib's own Ganomaly, which gives only a score."""
    from anomalib.models.image.ganomaly import Ganomaly

    model = Ganomaly(n_features=4, latent_vec_size=4, pre_processor=Ganomaly.configure_pre_processor((64, 64)))
    prediction = Detector(model.to_openvino(tmp_path, input_size=(64, 64))).predict(trained.paths[0])
    assert prediction.anomaly_map is None
    assert prediction.mask is None
    assert np.isfinite(prediction.score)


@pytest.mark.filterwarnings("ignore:.*was exported with its initial weights")
def test_twelve_bits_in_sixteen(tmp_path: Path) -> None:
    """The export knows its white level, for arrays and files alike."""
    model = GANomaly(image_size=32, n_features=8, latent_vec_size=8, white_level=4095, visualizer=False).eval()
    full_range = GANomaly(image_size=32, n_features=8, latent_vec_size=8, visualizer=False).eval()
    full_range.load_state_dict(model.state_dict())
    grey = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with torch.no_grad():
        expected = full_range(torch.from_numpy(grey / np.float32(4095)).expand(1, 3, -1, -1)).pred_score.item()
    detector = Detector(model.to_openvino(tmp_path))
    for source in (grey, tmp_path / "grey.png"):
        assert detector.predict(source).score == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("build", [Padim, Patchcore, FeatureGANomaly])
def test_detectors_with_a_backbone(train_with_backbone: Callable[[Any], tuple[Path, ImageBatch]], build: Any) -> None:
    """Trained models of others, and ours, give what anomalib's engine gives."""
    xml, batch = train_with_backbone(build)
    predictions = Detector(xml).predict(batch.image_path)
    for prediction, score, anomaly_map in zip(predictions, batch.pred_score, batch.anomaly_map, strict=True):
        assert prediction.score == pytest.approx(float(score), abs=1e-3)
        np.testing.assert_allclose(prediction.anomaly_map, anomaly_map.squeeze(), atol=1e-3)
        assert prediction.mask is not None


class TestRefused:
    """Bad models, devices and images."""

    def test_missing_files(self, tmp_path: Path, trained: Trained) -> None:
        with pytest.raises(FileNotFoundError, match=r"no file '.*lost\.xml'"):
            Detector(tmp_path / "lost.xml")
        lonely = tmp_path / "lonely.xml"
        lonely.write_bytes(trained.xml.read_bytes())
        with pytest.raises(FileNotFoundError, match=r"no file '.*lonely\.bin'"):
            Detector(lonely)

    def test_truncated_model(self, tmp_path: Path, trained: Trained) -> None:
        (tmp_path / "cut.xml").write_bytes(trained.xml.read_bytes()[:5000])
        (tmp_path / "cut.bin").write_bytes(trained.xml.with_suffix(".bin").read_bytes())
        with pytest.raises(NotADetectorError, match=r"cut\.xml' is no model that OpenVINO can read"):
            Detector(tmp_path / "cut.xml")

    def test_onnx_file_without_its_weights(self, tmp_path: Path) -> None:
        """They lie in a second file, which is lost or cut off."""
        ports = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 8, 8]) for name in ("image", "anomaly_map")]
        weights = onnx.numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), "weights")
        node = onnx.helper.make_node("Conv", ["image", "weights"], ["anomaly_map"], pads=[1] * 4)
        graph = onnx.helper.make_graph([node], "graph", ports[:1], ports[1:], [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        path = tmp_path / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
        Detector(path)
        advice = r"model\.onnx' is no model .* put its weights, an undamaged 'model\.onnx\.data', beside it"
        (tmp_path / "model.onnx.data").write_bytes(b"cut")
        with pytest.raises(NotADetectorError, match=advice):
            Detector(path)
        (tmp_path / "model.onnx.data").unlink()
        with pytest.raises(NotADetectorError, match=advice):
            Detector(path)

    def test_other_kind_of_model(self, tmp_path: Path) -> None:
        ops = openvino.opset13
        image = ops.parameter([1, 3, 8, 8], name="image")
        openvino.save_model(openvino.Model([ops.relu(image)], [image]), tmp_path / "relu.xml")
        with pytest.raises(NotADetectorError, match=r"relu\.xml' is no anomaly detector: it has 1 inputs"):
            Detector(tmp_path / "relu.xml")

    def test_model_whose_scores_are_not_finite(self, tmp_path: Path, trained: Trained) -> None:
        ops = openvino.opset13
        image = ops.parameter([1, 3, 8, 8], name="image")
        score = ops.log(ops.subtract(ops.reduce_mean(image, [1, 2, 3]), np.float32(2)))
        score.output(0).set_names({"pred_score"})
        openvino.save_model(openvino.Model([score], [image]), tmp_path / "broken.xml")
        with pytest.raises(ValueError, match=r"scores '.*\.png' nan, which says nothing"):
            Detector(tmp_path / "broken.xml").predict(trained.paths[0])

    def test_score_that_is_not_finite_is_skipped_like_an_unreadable_image(
        self, tmp_path: Path, trained: Trained
    ) -> None:
        ops = openvino.opset13
        image = ops.parameter([1, 3, 8, 8], name="image")
        score = ops.log(ops.reduce_mean(image, [1, 2, 3]))  # Minus infinity for a black image.
        score.output(0).set_names({"pred_score"})
        openvino.save_model(openvino.Model([score], [image]), tmp_path / "log.xml")
        images = [np.full((8, 8), level, dtype=np.uint8) for level in (0, 9, 0, 99)]
        reasons: list[str] = []
        detector = Detector(tmp_path / "log.xml")
        assert len(list(detector.stream(images, skip=lambda _, error: reasons.append(str(error))))) == 2
        assert [reason.startswith("The model scores an image -inf") for reason in reasons] == [True, True]

    def test_weights_instead_of_the_model(self, trained: Trained) -> None:
        with pytest.raises(NotADetectorError, match=r"holds weights only: give '.*\.xml'"):
            Detector(trained.xml.with_suffix(".bin"))

    @pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
    def test_threshold_that_is_no_score(self, trained: Trained, threshold: float) -> None:
        with pytest.raises(ValueError, match="must be a finite score"):
            Detector(trained.xml, threshold=threshold)

    def test_unknown_device(self, trained: Trained) -> None:
        with pytest.raises(ValueError, match=r"no device 'TPU' here: choose one of CPU"):
            Detector(trained.xml, device="TPU")

    @pytest.mark.parametrize("kind", ["int16", "int64", "uint32", "uint64", "bool"])
    def test_other_integers_do_not_say_what_is_white(self, kind: str) -> None:
        with pytest.raises(ValueError, match=f"{kind} must hold unsigned integers of 8 or 16 bits"):
            to_input(np.zeros((8, 8), dtype=kind))

    @pytest.mark.parametrize("shape", [(8, 8, 2), (8, 8, 5), (8,), (0, 8, 3)])
    def test_arrays_that_are_no_images(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"is no image: give \(H, W\)"):
            to_input(np.zeros(shape, dtype=np.uint8))

    @pytest.mark.parametrize("value", [2.0, -1.0, float("nan")])
    def test_floats_outside_their_range(self, value: float) -> None:
        with pytest.raises(ValueError, match="unsigned integers of 8 or 16 bits, or floats in"):
            to_input(np.full((8, 8), value))


@pytest.mark.parametrize("seconds", [0.02, 0.3])
def test_closed_streams_leave_no_job_that_starts(seconds: float) -> None:
    """Nor does one start later: Python's end would abort it inside of OpenVINO."""
    starting = 0

    def start(item: int) -> int:
        nonlocal starting
        starting += 1
        time.sleep(seconds)
        starting -= 1
        return item

    for _ in range(5):
        jobs = start_ahead(count(), start, 4)
        next(jobs)
        time.sleep(0.03)
        jobs.close()
        assert starting == 0
        time.sleep(0.05)
        assert starting == 0


def test_closed_streams_do_not_wait_for_a_camera() -> None:
    """Which may never give another image."""
    silent = Event()
    jobs = start_ahead((silent.wait() if number else number for number in range(2)), lambda item: item, 4)
    assert next(jobs) == (0, 0)
    jobs.close()
    assert not silent.is_set()
    silent.set()


def test_imports_nothing_heavy() -> None:
    """Neither PyTorch nor anomalib nor anything else that a small device lacks."""
    code = (
        "import sys, ganomaly_plugin.edge.command\n"
        "heavy = {'torch', 'anomalib', 'lightning', 'cv2', 'pandas', 'sklearn', 'rich', 'torchvision'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_detectors_one_after_another_leave_signal_handling_intact(trained: Trained) -> None:
    """Cores freed first in, first out break OpenVINO's stack for signals: the end of a child then kills the process."""
    script = """
import signal, subprocess, sys
from ganomaly_plugin.edge import Detector

signal.signal(signal.SIGCHLD, lambda *_: None)
detector = Detector(sys.argv[1])
detector = Detector(sys.argv[1])
del detector
subprocess.run([sys.executable, "-c", ""], check=True)
"""
    subprocess.run([sys.executable, "-c", script, str(trained.xml)], check=True)
