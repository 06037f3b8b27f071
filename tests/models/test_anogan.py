# SPDX-License-Identifier: Apache-2.0
"""AnoGAN."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from ganomaly_plugin import AnoGAN

from .model_tester import ModelTester


class TestAnoGAN(ModelTester):
    """What every model must do."""

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> AnoGAN:
        settings: dict[str, Any] = {"n_features": 4, "latent_vec_size": 4, "steps": 3} | kwargs
        return AnoGAN(image_size=image_size, input_channels=input_channels, **settings)

    @pytest.mark.parametrize("method", ["to_torch", "to_onnx", "to_openvino"])
    def test_exports_are_refused(self, tmp_path: Path, method: str) -> None:
        """There is no static graph of a search; the error says what to export instead."""
        with pytest.raises(ValueError, match=r"AnoGAN cannot be exported: .* Train FAnoGAN"):
            getattr(self.build(), method)(tmp_path)


@pytest.mark.parametrize("steps", [500, 100])
def test_search_recovers_a_code(steps: int) -> None:
    """For images that the generator itself made, the error falls by nine tenths, also in fewer, longer steps."""
    seed_everything(0)
    model = AnoGAN(image_size=32, n_features=8, latent_vec_size=4, steps=steps, weight=0.0, visualizer=False).model
    with torch.no_grad():  # Fresh weights make images that hardly depend on the code.
        for parameter in model.inference_networks["generator"].parameters():
            parameter *= 3
    model.eval()
    wanted = model.start + 0.5 * torch.randn(3, 4, 1, 1)
    with torch.no_grad():
        images = model.inference_networks["generator"](wanted)
        before, _ = model.distance(images, model.features(images), model.start.repeat(3, 1, 1, 1))
    after = model(images).pred_score
    assert (after < 0.1 * before).all()


def test_search_works_where_gradients_are_off() -> None:
    """As in anomalib's test and predict."""
    model = AnoGAN(image_size=32, n_features=4, latent_vec_size=4, steps=5, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = model(images).pred_score
    with torch.inference_mode():
        torch.testing.assert_close(model(images.clone()).pred_score, expected)


def test_score_by_hand() -> None:
    """Nine tenths of the summed error and a tenth of the summed difference of features, at the code that was found."""
    model = AnoGAN(image_size=32, n_features=4, latent_vec_size=4, steps=2, visualizer=False).eval().model
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    networks = model.inference_networks
    with torch.no_grad():
        generated = networks["generator"](model.search(images))
        features = [networks["discriminator"](batch)[1] for batch in (images, generated)]
    expected = 0.9 * (images - generated).abs().sum((1, 2, 3)) + 0.1 * (features[0] - features[1]).abs().sum((1, 2, 3))
    torch.testing.assert_close(model(images).pred_score, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 20}, "each side must be at least 28"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"weight": -0.1}, "weight is -0.1; it is a fraction, which lies in"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        AnoGAN(**arguments)
