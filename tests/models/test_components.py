# SPDX-License-Identifier: Apache-2.0
"""The pieces that models share, against values worked out independently."""

import math

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.metrics import AUROC as StockAUROC
from anomalib.post_processing import PostProcessor as StockPostProcessor
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ganomaly_plugin.models.components.dcgan import Decoder, Encoder, MapToVector, Pyramid, VectorToMap
from ganomaly_plugin.models.components.metrics import AUROC, AveragePrecision
from ganomaly_plugin.models.components.post_processor import OneClassPostProcessor, OneClassThreshold
from ganomaly_plugin.models.components.pre_processor import resize_antialiased


def validation_batch(scores: list[float], labels: list[int], masks: bool = False) -> ImageBatch:
    """A batch of 4x4 images whose maps hold each image's score everywhere."""
    values = torch.tensor(scores)
    maps = values.view(-1, 1, 1).expand(-1, 4, 4)
    gt_label = torch.tensor(labels)
    return ImageBatch(
        image=torch.zeros(len(scores), 3, 4, 4),
        gt_label=gt_label,
        gt_mask=gt_label.view(-1, 1, 1).expand(-1, 4, 4).bool() if masks else None,
        pred_score=values,
        anomaly_map=maps,
    )


def fitted(scores: list[float], labels: list[int], masks: bool = False, **kwargs: float) -> OneClassPostProcessor:
    """A post-processor that has seen one validation epoch."""
    post_processor = OneClassPostProcessor(**kwargs)
    post_processor.on_validation_batch_end(None, None, validation_batch(scores, labels, masks))
    post_processor.on_validation_epoch_end(None, None)
    return post_processor


def with_gradients(outputs: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Outputs, and the gradients of the sum of their squares."""
    return outputs, *torch.autograd.grad(outputs.square().sum(), inputs)


class TestPyramid:
    """Sizes and widths of the networks."""

    @pytest.mark.parametrize(
        ("size", "last", "stages"),
        [((28, 28), (7, 7), 2), ((32, 32), (4, 4), 3), ((39, 39), (4, 4), 3), ((224, 224), (7, 7), 5)],
    )
    def test_sizes(self, size: tuple[int, int], last: tuple[int, int], stages: int) -> None:
        """Halving stops between 4 and 7 pixels."""
        sizes = Pyramid(size, 3, 2, 5).sizes
        assert sizes[-1] == last
        assert len(sizes) == stages + 1

    def test_widths(self) -> None:
        """Widths double up to the cap."""
        assert Pyramid((64, 64), 3, 64, 100).widths == [64, 128, 256, 512]
        assert Pyramid((64, 64), 3, 64, 100, max_features=200).widths == [64, 128, 200, 200]

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_vectors(self, layout: torch.memory_format) -> None:
        """The matrix products are PyTorch's convolutions, forwards and backwards, in either memory format."""
        noise = torch.Generator().manual_seed(0)
        maps = torch.randn(2, 3, 4, 5, generator=noise).to(memory_format=layout).requires_grad_()
        vectors = torch.randn(2, 6, 1, 1, generator=noise).requires_grad_()
        down, up = MapToVector(3, 6, (4, 5), bias=False), VectorToMap(6, 3, (4, 5), bias=False)
        for layer, convolution, inputs in (
            (down, torch.nn.functional.conv2d, maps),
            (up, torch.nn.functional.conv_transpose2d, vectors),
        ):
            layer.to(memory_format=layout)
            for ours, expected in zip(
                with_gradients(layer(inputs), inputs, layer.weight),
                with_gradients(convolution(inputs, layer.weight), inputs, layer.weight),
                strict=True,
            ):
                torch.testing.assert_close(ours, expected)

    @pytest.mark.parametrize("size", [(28, 45), (39, 39), (256, 234)])
    def test_decoder_mirrors_encoder(self, size: tuple[int, int]) -> None:
        """Odd sizes come back exactly."""
        images = torch.zeros(1, 3, *size)
        latent = Encoder(Pyramid(size, 3, 2, 5))(images)
        assert latent.shape == (1, 5, 1, 1)
        assert Decoder(Pyramid(size, 3, 2, 5))(latent).shape == images.shape


class TestRankingMetrics:
    """AUROC and average precision of raw scores."""

    def test_equal_scikit_learn_where_stock_does_not(self) -> None:
        """Scores above 1 come out as scikit-learn ranks them; anomalib's metric squashes each batch by a sigmoid."""
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(60, generator=generator) * 30
        labels = (scores + torch.randn(60, generator=generator) * 12 > 18).long()
        ours = {
            "AUROC": AUROC(fields=["pred_score", "gt_label"]),
            "AP": AveragePrecision(fields=["pred_score", "gt_label"]),
        }
        stock = StockAUROC(fields=["pred_score", "gt_label"])
        # The last batch alone stays inside [0, 1] and escapes the sigmoid.
        order = scores.argsort(descending=True)
        for part in (order[:30], order[30:57], order[57:]):
            batch = ImageBatch(image=torch.zeros(len(part), 3, 1, 1), gt_label=labels[part], pred_score=scores[part])
            for metric in (*ours.values(), stock):
                metric.update(batch)
        assert ours["AUROC"].compute().item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert ours["AP"].compute().item() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert abs(stock.compute().item() - roc_auc_score(labels, scores)) > 1e-3

    def test_one_class_alone_is_nan(self) -> None:
        """Nothing can be ranked against nothing."""
        metric = AUROC(fields=["pred_score", "gt_label"])
        metric.update(validation_batch([1, 2], [0, 0]))
        assert metric.compute().isnan()


class TestOneClassPostProcessor:
    """Thresholds, user-facing scores, labels and masks."""

    def test_threshold_is_f1_optimal_with_anomalies(self) -> None:
        """Normal 1, 2, 5, anomalous 4, 6: calling 4 and more anomalous has the best F1 (0.8), so it is halfway to 2."""
        post_processor = fitted([1, 2, 5, 4, 6], [0, 0, 0, 1, 1], masks=True)
        assert post_processor.image_threshold.item() == 3
        assert post_processor.pixel_threshold.item() == 3

    @pytest.mark.parametrize("overlap", [0.0, 0.5, 2.0])
    def test_labels_have_the_best_f1(self, overlap: float) -> None:
        """No threshold of the validation scores gives labels of a better F1 than the labels of the post-processor."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40) % 4 == 0
        scores = torch.rand(40, generator=generator) * (1 + overlap) + labels * 1.5
        post_processor = fitted(scores.tolist(), labels.long().tolist(), masks=True)
        maps = scores.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
        predicted = post_processor(InferenceBatch(pred_score=scores, anomaly_map=maps))
        best = max(f1_score(labels, scores >= threshold) for threshold in scores)
        assert f1_score(labels, predicted.pred_label) == pytest.approx(best)
        assert f1_score(labels, predicted.pred_mask[:, 0, 0, 0]) == pytest.approx(best)
        assert best == 1 or overlap > 0

    def test_everything_anomalous(self) -> None:
        """Without a normal score below it, the threshold lies halfway to zero."""
        assert fitted([4, 6], [1, 1]).image_threshold.item() == 2

    def test_threshold_is_a_conformal_quantile_without_anomalies(self) -> None:
        """Of 1..100 all normal, 95 % give the rank ceil(101 * 0.95) = 96, half give 51, a quarter of the pixels 26."""
        scores = [float(score) for score in range(1, 101)]
        assert fitted(scores, [0] * 100).image_threshold.item() == 96
        half = fitted(scores, [0] * 100, normal_quantile=0.5, normal_pixel_quantile=0.25)
        assert half.image_threshold.item() == 51
        assert half.pixel_threshold.item() == 26

    @pytest.mark.parametrize("n", [19, 30, 59, 200])
    def test_false_alarms_are_as_rare_as_promised(self, n: int) -> None:
        """Averaged over validation sets of n normal images, at most 5 % of new ones are above the threshold."""
        generator = torch.Generator().manual_seed(n)
        thresholds = []
        for _ in range(300):
            threshold = OneClassThreshold(0.95, fields=["pred_score", "gt_label"])
            scores = torch.rand(n, generator=generator)
            threshold.update(
                ImageBatch(image=torch.zeros(n, 3, 1, 1), pred_score=scores, gt_label=torch.zeros(n).long())
            )
            thresholds.append(threshold.compute().item())
        false_alarms = 1 - sum(thresholds) / len(thresholds)  # Scores are uniform, so the threshold is the probability.
        expected = 1 - math.ceil((n + 1) * 0.95 - 1e-9) / (n + 1)
        assert expected <= 0.05 + 1e-9
        assert false_alarms == pytest.approx(expected, abs=0.01)

    def test_too_few_images_are_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        """Of 18 images none has the rank that 95 % asks for; 19 are enough."""
        assert fitted([float(n) for n in range(18)], [0] * 18, normal_pixel_quantile=0.5).image_threshold.item() == 17
        assert "18 normal validation scores are too few" in caplog.text
        assert "Give 19 or more" in caplog.text
        caplog.clear()
        fitted([float(n) for n in range(19)], [0] * 19, normal_pixel_quantile=0.5)
        assert not caplog.text

    def test_pixel_threshold_without_masks_ignores_anomalous_images(self) -> None:
        """Where no mask says which pixels are anomalous, only normal images set the pixel threshold."""
        post_processor = fitted([1, 2, 9], [0, 0, 1], normal_pixel_quantile=1)
        assert post_processor.pixel_threshold.item() == 2

    def test_score_is_the_threshold_ratio(self) -> None:
        """With threshold 3: 3 -> 1/2, 9 -> 3/4, 0 -> 0; only what exceeds 1/2 is anomalous."""
        post_processor = fitted([1, 2, 5, 4, 6], [0, 0, 0, 1, 1], masks=True)
        raw = torch.tensor([3.0, 9.0, 0.0])
        result = post_processor(InferenceBatch(pred_score=raw, anomaly_map=raw.view(3, 1, 1, 1)))
        assert result.pred_score.tolist() == [0.5, 0.75, 0]
        assert result.pred_label.tolist() == [False, True, False]
        assert result.pred_mask.flatten().tolist() == [False, True, False]

    def test_score_never_ties_where_stock_clamps(self) -> None:
        """Far above the validation maximum, anomalib's scores are all 1; ours still rank."""
        raw = torch.tensor([7.0, 20.0, 50.0])
        ours = fitted([1, 2, 5, 4, 6], [0, 0, 0, 1, 1])(InferenceBatch(pred_score=raw)).pred_score
        stock = StockPostProcessor()
        stock.on_validation_batch_end(None, None, validation_batch([1, 2, 5, 4, 6], [0, 0, 0, 1, 1]))
        stock.on_validation_epoch_end(None, None)
        assert (stock(InferenceBatch(pred_score=raw)).pred_score.diff() == 0).any()
        assert (ours.diff() > 0).all()
        assert ours.max() < 1

    @pytest.mark.parametrize(("sensitivity", "lowest"), [(0.5, 3), (0.75, 1), (0.25, 9)])
    def test_sensitivity_moves_the_threshold(self, sensitivity: float, lowest: float) -> None:
        """Anomalous means s / (s + t) > 1 - q, hence s > t * (1 - q) / q."""
        post_processor = fitted(
            [1, 2, 5, 4, 6], [0, 0, 0, 1, 1], masks=True, image_sensitivity=sensitivity, pixel_sensitivity=sensitivity
        )
        raw = torch.tensor([lowest * 0.99, lowest * 1.01])
        result = post_processor(InferenceBatch(pred_score=raw, anomaly_map=raw.view(2, 1, 1, 1)))
        assert result.pred_label.tolist() == [False, True]
        assert result.pred_mask.flatten().tolist() == [False, True]

    def test_all_scores_zero_or_equal(self) -> None:
        """No range, no division by zero: zero stays zero, and a constant sits at the threshold."""
        zero = fitted([0, 0], [0, 0])(InferenceBatch(pred_score=torch.zeros(1))).pred_score
        assert zero.tolist() == [0]
        constant = fitted([3, 3], [0, 0])(InferenceBatch(pred_score=torch.tensor([3.0]))).pred_score
        assert constant.tolist() == [0.5]

    def test_without_validation_scores_still_rank(self, caplog: pytest.LogCaptureFixture) -> None:
        """A model that never saw a validation set ranks, and says that its labels mean nothing."""
        post_processor = OneClassPostProcessor()
        post_processor.on_predict_start(None, None)
        assert "No threshold was learnt" in caplog.text
        assert post_processor(InferenceBatch(pred_score=torch.tensor([1.0, 3.0]))).pred_score.tolist() == [0.5, 0.75]

    def test_configuration_survives_a_checkpoint(self) -> None:
        """Quantiles and sensitivities come back."""
        saved = OneClassPostProcessor(normal_quantile=0.5, image_sensitivity=0.7).checkpoint_config()
        restored = OneClassPostProcessor()
        restored.load_checkpoint_config(saved)
        restored.on_validation_batch_end(None, None, validation_batch([1, 2, 3, 4], [0, 0, 0, 0]))
        restored.on_validation_epoch_end(None, None)
        assert restored.image_sensitivity == 0.7
        assert restored.image_threshold.item() == 3

    @pytest.mark.parametrize("name", ["normal_quantile", "normal_pixel_quantile"])
    def test_bad_quantile_is_refused(self, name: str) -> None:
        """A quantile outside (0, 1] is named."""
        with pytest.raises(ValueError, match=rf"{name} is 1.5.*in \(0, 1\]"):
            OneClassPostProcessor(**{name: 1.5})


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 50), (64, 20), (300, 257)])
def test_antialiased_resizing_is_that_of_pytorch(size: tuple[int, int]) -> None:
    """Two matrix products against PyTorch's own kernel, for enlarging, shrinking and both at once."""
    images = torch.rand(2, 3, *size)
    expected = torch.nn.functional.interpolate(images, (32, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize_antialiased(images, 32, 40), expected, atol=2e-6, rtol=0)
    assert torch.equal(resize_antialiased(images, *size), images)
