# SPDX-License-Identifier: Apache-2.0
"""The plain autoencoder."""

from typing import Any

import pytest
import torch

from ganomaly_plugin import Autoencoder

from .model_tester import ExportTester, ModelTester


class TestAutoencoder(ModelTester, ExportTester):
    """What every model must do."""

    INFERENCE_PARAMETERS = 2_736 + 2_744  # Encoder (192 + 528 + 2,016) and decoder (2,032 + 520 + 192).

    def build(self, image_size: tuple[int, int] = (32, 32), input_channels: int = 3, **kwargs: Any) -> Autoencoder:
        return Autoencoder(
            image_size=image_size, input_channels=input_channels, n_features=4, latent_vec_size=4, **kwargs
        )


def test_score_by_hand() -> None:
    """The mean squared difference, where the full range counts as one."""
    model = Autoencoder(image_size=32, n_features=4, latent_vec_size=4, visualizer=False).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        prediction = model.model(images)
        reconstructions = model.model.networks["autoencoder"](images)
        shown = model.model.space.show(reconstructions)
    torch.testing.assert_close(shown, (reconstructions + 1) / 2)
    expected = ((images + 1) / 2 - shown).square().mean((1, 2, 3))
    torch.testing.assert_close(prediction.pred_score, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 20}, "each side must be at least 28"),
        ({"latent_vec_size": 0}, "latent_vec_size is 0; it must be at least 1"),
        ({"lr": 0.0}, "lr is 0.0; the learning rate must be positive"),
        ({"input_channels": 2}, "choose 1 .grey. or 3 .colour."),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The message names the value, the rule and what works."""
    with pytest.raises(ValueError, match=message):
        Autoencoder(**arguments)
