# SPDX-License-Identifier: Apache-2.0
"""AnoGAN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.data import Folder
from lightning.pytorch import seed_everything

from ganomaly_plugin import AnoGAN

from .model_tester import ModelTester


class TestAnoGAN(ModelTester):
    """What every model must do, but for bits where a whole batch is searched at once."""

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> AnoGAN:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4, "steps": 3} | kwargs
        return AnoGAN(image_size=image_size, input_channels=input_channels, **settings)

    def test_score_depends_on_the_image_alone(self, tmp_path: Path, datamodule: Folder) -> None:
        """An image's score and map are the same alone and in batches of any size and order."""
        model = self.train(tmp_path, datamodule).eval()
        images = torch.rand(9, 3, 32, 32) * 2 - 1
        whole = model.model(images)
        order = torch.randperm(9)
        for size in (1, 2, 4):
            parts = [model.model(part) for part in images[order].split(size)]
            torch.testing.assert_close(torch.cat([part.pred_score for part in parts]), whole.pred_score[order])
            maps = torch.cat([part.anomaly_map for part in parts])
            torch.testing.assert_close(maps, whole.anomaly_map[order], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("form", ["to_torch", "to_onnx", "to_openvino"])
    def test_exports_are_refused(self, tmp_path: Path, form: str) -> None:
        """There is no static graph of a search; the error says what to export instead."""
        with pytest.raises(ValueError, match=r"AnoGAN cannot be exported: .* Train FAnoGAN"):
            getattr(self.build(), form)(tmp_path)


@pytest.mark.parametrize("steps", [500, 100])
def test_search_recovers_a_code(steps: int) -> None:
    """For images that the generator itself made, the error falls by nine tenths, also in fewer, longer steps."""
    seed_everything(0)
    model = AnoGAN(image_size=32, n_features=8, latent_vec_size=4, steps=steps, weight=0.0, visualizer=False).model
    with torch.no_grad():  # Fresh weights make images that hardly depend on the code.
        for parameter in model.average.module.generator.parameters():
            parameter *= 3
    model.eval()
    wanted = model.start + 0.5 * torch.randn(3, 4, 1, 1)
    with torch.no_grad():
        images = model.average.module.generator(wanted)
        before = model.distance(images, model.features(images), model.start.repeat(3, 1, 1, 1))
    after = model.infer(images).pred_score
    assert (after < 0.1 * before).all()


def test_search_works_where_gradients_are_off() -> None:
    """As in anomalib's test and predict."""
    model = AnoGAN(image_size=32, n_features=4, latent_vec_size=4, steps=5, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = model(images).pred_score
    with torch.inference_mode():
        torch.testing.assert_close(model(images.clone()).pred_score, expected)


def test_picture_of_scored_images_takes_no_second_search() -> None:
    """Other images, another number of steps or other weights do."""
    model = AnoGAN(image_size=32, n_features=4, latent_vec_size=4, steps=2, visualizer=False).eval().model
    searches = []
    model.track = lambda steps: searches.append(steps) or steps
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    model(images)
    rebuilt = model.reconstruct(images.clone())
    assert len(searches) == 1
    model.reconstruct(-images)
    torch.testing.assert_close(model.reconstruct(images), rebuilt, rtol=0, atol=0)
    assert len(searches) == 3
    model.steps = 3
    model.reconstruct(images)
    assert len(searches) == 4
    model.load_state_dict({name: 2 * tensor for name, tensor in model.state_dict().items()})
    assert not model.reconstruct(images).equal(rebuilt)
    assert len(searches) == 5
    model.update_average()
    model.reconstruct(images)
    assert len(searches) == 6


def test_score_by_hand() -> None:
    """Nine tenths of the summed error and a tenth of the summed difference of features, at the code that was found."""
    model = AnoGAN(image_size=32, n_features=4, latent_vec_size=4, steps=2, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    networks: Any = model.average.module
    with torch.no_grad():
        generated = networks.generator(model.search(images))
        features = [networks.discriminator(batch)[1] for batch in (images, generated)]
    expected = 0.9 * (images - generated).abs().sum((1, 2, 3)) + 0.1 * (features[0] - features[1]).abs().sum((1, 2, 3))
    torch.testing.assert_close(model(images).pred_score, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 20}, "each side must be at least 28"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"weight": -0.1}, "weight is -0.1; it is a share, which lies in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        AnoGAN(**arguments)
