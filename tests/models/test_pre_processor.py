# SPDX-License-Identifier: Apache-2.0
"""What a model sees: the same in the engine, in PyTorch, and in exported graphs."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.data.transforms import SquarePad
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import CenterCrop, Compose, Grayscale, Normalize, Resize, Transform

from ganomaly_plugin import GANomaly
from ganomaly_plugin.edge import Detector
from ganomaly_plugin.models.components.pre_processor import AntialiasedPreProcessor, crop_centre
from tests.engine import build_engine

SCALE = Normalize(mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("size", [(5, 9), (6, 8), (9, 9), (13, 4)])
@pytest.mark.parametrize("cropped", [(4, 4), (5, 8), (8, 5), (10, 11), (12, 3)])
def test_crop_is_that_of_torchvision(size: tuple[int, int], cropped: tuple[int, int]) -> None:
    """Whether it cuts or pads, an even or an odd number of pixels."""
    images = torch.rand(2, 3, *size)
    assert torch.equal(crop_centre(images, *cropped), CenterCrop(cropped)(images))


CHAINS = {
    "crop, resize": [CenterCrop(60), Resize((32, 32), antialias=True), SCALE],
    "crop, one side": [CenterCrop((60, 90)), Resize(32, antialias=True), CenterCrop(32), SCALE],
    "resize, crop": [Resize((40, 44), antialias=True), CenterCrop(32), SCALE],
    "scale, resize": [SCALE, Resize((32, 32), antialias=True)],
    "two": [Resize((64, 64), antialias=True), Resize((32, 32), antialias=True), Grayscale(3), SCALE],
    "nested": [Compose([CenterCrop(50), Compose([Resize((32, 32), antialias=True)])]), SCALE],
    "not antialiased": [Resize((32, 32), antialias=False), SCALE],
    "nearest": [Resize((32, 32), InterpolationMode.NEAREST), SCALE],
    "mode": [Resize((32, 32), InterpolationMode.BILINEAR), SCALE],
    "number": [Resize((32, 32), 2), SCALE],
}


def make_parts(root: Path, to_image: Any) -> Folder:
    """Write images of 70x100 pixels, anomalous ones among them, and return their datamodule."""
    generator = np.random.default_rng(0)
    for kind in ("good", "bad"):
        (root / kind).mkdir(parents=True)
        for index in range(8):
            levels = generator.integers(0, 256, (70, 100))
            to_image(levels if kind == "good" else 255 - levels).save(root / kind / f"{index}.png")
    return Folder(
        "parts", root=root, normal_dir="good", abnormal_dir="bad", train_batch_size=4, eval_batch_size=4, num_workers=0,
        val_split_mode="same_as_test", test_split_mode="from_dir", test_split_ratio=0.5, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_forward_keeps_the_order(chain: list[Transform]) -> None:
    """Of images of any size, larger and smaller than crops."""
    for size in ((70, 100), (33, 120), (32, 32), (20, 50)):
        images = torch.rand(2, 3, *size)
        expected = Compose(chain)(images)
        torch.testing.assert_close(AntialiasedPreProcessor(Compose(chain))(images), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("crop, one side", AntialiasedPreProcessor), ("resize, crop", PreProcessor)],
)
def test_engine_and_device_agree(tmp_path: Path, name: str, kind: type[PreProcessor]) -> None:
    """With a chain of one's own, in anomalib's pre-processor or in ours, also after a checkpoint."""
    datamodule = make_parts(tmp_path / "parts", lambda levels: Image.fromarray(levels.astype(np.uint8)))
    seed_everything(3)
    arguments: dict[str, Any] = {"image_size": 32, "n_features": 4, "latent_vec_size": 4, "visualizer": False}
    model = GANomaly(pre_processor=kind(Compose(CHAINS[name])), **arguments)
    engine = build_engine(tmp_path)
    engine.fit(model, datamodule=datamodule)
    seen: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    predictions = engine.predict(model, datamodule=datamodule)
    paths = [path for batch in predictions for path in batch.image_path]
    images = [torch.from_numpy(np.array(Image.open(path).convert("RGB")) / 255).permute(2, 0, 1) for path in paths]
    expected = Compose(CHAINS[name])(torch.stack(images).float())
    torch.testing.assert_close(torch.cat(seen), expected, atol=1e-5, rtol=0)
    reloaded = GANomaly.load_from_checkpoint(engine.best_model_path, visualizer=False)
    maps = torch.cat([batch.anomaly_map for batch in predictions]).numpy()
    detector = Detector(reloaded.to_openvino(tmp_path / "export"))
    for path, anomaly_map in zip(paths, maps, strict=True):
        np.testing.assert_allclose(detector.predict(path).anomaly_map, anomaly_map, atol=1e-4)
    for size in ((32, 90), (20, 20), (200, 130)):
        image = torch.rand(1, 3, *size)
        with torch.no_grad():
            expected_map = model.eval().post_processor(model.model(Compose(CHAINS[name])(image))).anomaly_map
        predicted = detector.predict(image[0].permute(1, 2, 0).numpy()).anomaly_map
        np.testing.assert_allclose(predicted, expected_map[0, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Resize(40), r"Resize\(40\) makes images of different sizes .*: give height and width"),
        (Compose([Resize([40]), CenterCrop(32)]), r"Resize\(40\)"),
        (Compose([SquarePad(), Resize(40)]), r"Resize\(40\)"),
        (Resize(None, max_size=40), r"Resize\(None, max_size=40\)"),
        (Resize((32, 32), InterpolationMode.BICUBIC), "bicubic interpolation and antialiasing cannot be exported"),
        (Resize((32, 32), 1), "lanczos interpolation and antialiasing cannot be exported"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [PreProcessor, AntialiasedPreProcessor])
def test_what_has_no_place_in_a_graph_is_refused(kind: type[PreProcessor], transform: Transform, message: str) -> None:
    """Before the training."""
    with pytest.raises(ValueError, match=message):
        GANomaly(image_size=32, n_features=2, latent_vec_size=2, pre_processor=kind(transform))


def test_other_pre_processors_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A class of one's own may do anything."""

    class Own(PreProcessor):
        pass

    with caplog.at_level(logging.WARNING):
        GANomaly(image_size=32, n_features=2, latent_vec_size=2, pre_processor=Own(Resize((32, 32))))
    assert "Exports of a model with Own may see other pixels" in caplog.text


class TestWhiteLevel:
    """Cameras of 12 bits whose files have 16."""

    ARGUMENTS: dict[str, Any] = {"image_size": 32, "n_features": 4, "latent_vec_size": 4, "input_channels": 1}  # noqa: RUF012

    def train(self, root: Path, white: int, **kwargs: Any) -> tuple[GANomaly, Any, list[Any]]:
        """Train on images whose white has a value, and predict the others."""
        to_image = lambda levels: Image.fromarray(np.round(levels / 255 * white).astype(np.uint16))  # noqa: E731
        datamodule = make_parts(root / "parts", to_image)
        seed_everything(3)
        model = GANomaly(**self.ARGUMENTS, **kwargs)
        engine = build_engine(root)
        engine.fit(model, datamodule=datamodule)
        return model, engine, engine.predict(model, datamodule=datamodule)

    @pytest.mark.slow
    def test_the_same_images_give_the_same_scores(self, tmp_path: Path) -> None:
        """As with 16 bits, up to the rounding of levels, in the engine and on the device, from a checkpoint too."""
        _, _, whole = self.train(tmp_path / "whole", 65535, visualizer=False)
        _, engine, part = self.train(tmp_path / "part", 4095, visualizer=False, white_level=4095)
        scores, expected = (torch.cat([batch.raw_score for batch in batches]) for batches in (part, whole))
        torch.testing.assert_close(scores, expected, rtol=0.02, atol=0)
        reloaded = GANomaly.load_from_checkpoint(engine.best_model_path, visualizer=False)
        detector = Detector(reloaded.to_openvino(tmp_path / "export"))
        assert detector.metadata["white_level"] == "4095"
        for batch in part:
            predicted = [detector.predict(path).score for path in batch.image_path]
            assert predicted == pytest.approx(batch.pred_score.tolist(), abs=1e-4)
            arrays = [detector.predict(np.array(Image.open(path), dtype=np.uint16)).score for path in batch.image_path]
            assert arrays == pytest.approx(predicted, abs=1e-5)
        with pytest.raises(ValueError, match="white_level is 4095 in the checkpoint and 65535 in the model"):
            engine.predict(GANomaly(**self.ARGUMENTS), dataloaders=[], ckpt_path=engine.best_model_path)

    @pytest.mark.parametrize(
        ("white", "arguments", "message"),
        [
            (4095, {}, "has [456].* % of the value of white.* white_level=1023, 4095 or 16383"),
            (1023, {"white_level": 16383}, "has [456].* % of the value of white"),
            (65535, {"white_level": 4095}, "1[0-9] times as bright as white by white_level=4095"),
            (4095, {"white_level": 4095}, ""),
            (65535, {}, ""),
        ],
    )
    def test_an_odd_range_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, white: int, arguments: dict[str, int], message: str
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="ganomaly_plugin"):
            self.train(tmp_path, white, visualizer=False, **arguments)
        found = [record.getMessage() for record in caplog.records if "brightest pixel" in record.getMessage()]
        assert len(found) == bool(message)
        if message:
            assert re.search(message, found[0])

    def test_pictures_are_bright(self, tmp_path: Path) -> None:
        """As bright as the reconstruction beside."""
        model, engine, _ = self.train(tmp_path, 4095, white_level=4095)
        engine.test(model, datamodule=engine.trainer.datamodule)
        picture = next((tmp_path).rglob("images/**/*.png"))
        assert np.array(Image.open(picture))[100:, :256].max() > 200

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"white_level": 0}, "white_level is 0; it must be from 1 to 65535, and is 4095 for 12 bits"),
            ({"white_level": 65536}, "white_level is 65536"),
            (
                {"white_level": 4095, "pre_processor": PreProcessor(Resize((32, 32)))},
                "white_level is 4095, but is a part of the default pre-processor: .* mean and std 0.03124",
            ),
            ({"white_level": 4095, "pre_processor": False}, "is a part of the default pre-processor"),
        ],
        ids=str,
    )
    def test_wrong_arguments_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GANomaly(**self.ARGUMENTS, **arguments)
