# SPDX-License-Identifier: Apache-2.0
"""What anomalib 2.7's own Ganomaly does, beside what ours does: the reasons for this package.

Should one of these tests fail with a newer anomalib, the defect was mended there, and the README should say so.
"""

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.models import Ganomaly as StockGanomaly
from torch import nn

from ganomaly_plugin import GANomaly


def stock_model(**kwargs: object) -> StockGanomaly:
    """anomalib's Ganomaly for 32 px."""
    return StockGanomaly(pre_processor=GANomaly.configure_pre_processor((32, 32)), n_features=16, **kwargs)


def first_convolution(network: nn.Module) -> nn.Conv2d:
    """The layer that sees the image."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def test_first_convolution_pads_one_pixel() -> None:
    """The official encoder pads by 1 pixel; anomalib's by 4, so that its maps are larger than half the image."""
    assert first_convolution(GANomaly(image_size=32).model.networks).padding == (1, 1)
    assert first_convolution(stock_model().model.generator).padding == (4, 4)


def test_weights_are_initialised_as_dcgan_does() -> None:
    """N(0, 0.02) in ours; PyTorch's default in anomalib's, whose initialisation reaches no layer."""
    ours = first_convolution(GANomaly(image_size=32, n_features=16).model.networks).weight
    stock = first_convolution(stock_model().model.generator).weight
    assert ours.std().item() == pytest.approx(0.02, rel=0.15)
    assert stock.std().item() > 0.05


def test_option_without_final_convolution_works() -> None:
    """anomalib's offers it and cannot build it."""
    assert GANomaly(image_size=32, n_features=4, add_final_conv_layer=False)
    with pytest.raises((AttributeError, RuntimeError)):
        stock_model(add_final_conv_layer=False).eval().model(torch.zeros(1, 3, 32, 32))


def test_predictions_do_not_depend_on_order() -> None:
    """anomalib's rescales each batch by the minimum and maximum seen so far; ours leaves a score as it is."""
    images = torch.rand(4, 3, 32, 32) * 2 - 1

    def scores(model: StockGanomaly | GANomaly, order: list[int]) -> torch.Tensor:
        model.eval()
        model.on_test_start()
        results = torch.zeros(4)
        with torch.no_grad():
            for index in order:
                batch = model.test_step(ImageBatch(image=images[index : index + 1]), 0)
                if isinstance(model, StockGanomaly):
                    model.on_test_batch_end(batch, batch, 0)
                results[index] = batch.pred_score
        return results

    ours, stock = GANomaly(image_size=32, n_features=4), stock_model()
    assert torch.equal(scores(ours, [0, 1, 2, 3]), scores(ours, [3, 1, 0, 2]))
    assert not torch.equal(scores(stock, [0, 1, 2, 3]).nan_to_num(), scores(stock, [3, 1, 0, 2]).nan_to_num())
