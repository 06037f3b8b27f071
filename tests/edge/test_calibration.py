# SPDX-License-Identifier: Apache-2.0
"""Thresholds from a line's own parts: what they promise, and the model that holds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.models import Padim
from PIL import Image
from scipy.stats import binomtest

from ganomaly_plugin import FeatureGANomaly
from ganomaly_plugin.edge import Detector
from ganomaly_plugin.edge.calibration import PixelQuantile, choose_threshold, needed_pictures, wilson_interval
from ganomaly_plugin.edge.command import main
from ganomaly_plugin.models.components.post_processor import OneClassThreshold

from .conftest import Trained

NOTHING = np.empty(0, dtype=np.float32)


def split(trained: Trained) -> tuple[list[str], list[str]]:
    """Paths of the good and of the bad digits that the engine has predicted."""
    bad = trained.values("gt_label")
    return (
        [path for path, is_bad in zip(trained.paths, bad, strict=True) if not is_bad],
        [path for path, is_bad in zip(trained.paths, bad, strict=True) if is_bad],
    )


def engine_threshold(quantile: float, scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold that a training's validation would learn."""
    metric = OneClassThreshold(quantile, fields=["pred_score", "gt_label"])
    metric.preds, metric.target = [torch.from_numpy(scores)], [torch.from_numpy(labels).long()]
    return float(metric.compute())


class TestThresholds:
    """Pure numbers."""

    @pytest.mark.parametrize("draw", ["normal", "tied"])
    @pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (30, 0.05), (99, 0.01), (57, 0.1)])
    def test_false_alarms_of_new_parts(self, draw: str, count: int, rate: float) -> None:
        """At most the promised fraction, on average over calibrations; without ties hardly fewer."""
        rng = np.random.default_rng(0)
        sample: Callable[..., Any] = rng.standard_normal if draw == "normal" else lambda n: rng.integers(0, 20, n)
        fractions = []
        for _ in range(2000):
            threshold, _ = choose_threshold(sample(count).astype(np.float32), NOTHING, false_alarms=rate)
            fractions.append((sample(200).astype(np.float32) > threshold).mean())
        error = 4 * np.std(fractions) / 2000**0.5
        assert np.mean(fractions) <= rate + error
        if draw == "normal":
            assert np.mean(fractions) >= rate - 1 / (count + 1) - error

    @pytest.mark.parametrize("draw", ["normal", "tied"])
    @pytest.mark.parametrize(("count", "recall"), [(19, 0.95), (40, 0.9)])
    def test_recall_of_new_parts(self, draw: str, count: int, recall: float) -> None:
        """At least the promised fraction, wherever the good parts lie."""
        rng = np.random.default_rng(0)
        sample: Callable[..., Any] = rng.standard_normal if draw == "normal" else lambda n: rng.integers(0, 20, n)
        fractions = []
        for _ in range(2000):
            good, bad = (sample(count).astype(np.float32) for _ in range(2))
            threshold, _ = choose_threshold(good, bad, recall=recall)
            fractions.append((sample(200).astype(np.float32) > threshold).mean())
        assert np.mean(fractions) >= recall - 4 * np.std(fractions) / 2000**0.5

    def test_best_f1(self) -> None:
        """No other threshold has a better one, ties and neighbouring floats among the scores."""
        rng = np.random.default_rng(0)
        for _ in range(200):
            good = rng.integers(0, 8, 12).astype(np.float32)
            bad = rng.integers(3, 12, 6).astype(np.float32)
            if rng.random() < 0.5:
                bad[0] = np.nextafter(good[0], np.float32(99))

            def f1(threshold: float, good: np.ndarray = good, bad: np.ndarray = bad) -> float:
                found, alarms = (bad > threshold).sum(), (good > threshold).sum()
                return 2 * found / (found + alarms + len(bad))

            threshold, _ = choose_threshold(good, bad)
            assert f1(threshold) == max(f1(value) for value in [-1.0, *good, *bad])

    def test_needed_pictures(self) -> None:
        """One fewer is refused, with a number that would do."""
        for rate, needed in ((0.01, 99), (0.05, 19), (0.3, 3), (1 / 30, 29)):
            assert needed_pictures(rate) == needed
            choose_threshold(np.arange(needed, dtype=np.float32), NOTHING, false_alarms=rate)
            with pytest.raises(ValueError, match=rf"give {needed} or more, or allow 1 / {needed}"):
                choose_threshold(np.arange(needed - 1, dtype=np.float32), NOTHING, false_alarms=rate)
        with pytest.raises(ValueError, match=r"recall of 0\.95: give 19 or more, or ask for 18 / 19"):
            choose_threshold(np.ones(1, np.float32), np.ones(18, np.float32), recall=0.95)

    @pytest.mark.parametrize(
        ("good", "bad", "goal", "message"),
        [
            (0, 5, {}, "no picture of a good part"),
            (5, 0, {}, "needs --false-alarms"),
            (5, 0, {"recall": 0.5}, "needs --false-alarms"),
            (5, 5, {"recall": 0.5, "false_alarms": 0.5}, "give one of them"),
            (5, 5, {"false_alarms": 1.0}, "must lie between 0 and 1"),
            (5, 5, {"recall": float("nan")}, "must lie between 0 and 1"),
            (5, 0, {"false_alarms": 0.5}, "5 of 5 good parts have the score 1"),
        ],
    )
    def test_refused(self, good: int, bad: int, goal: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            choose_threshold(np.ones(good, np.float32), np.ones(bad, np.float32), **goal)

    @pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 10), (13, 1443), (10, 10)])
    def test_intervals(self, count: int, total: int) -> None:
        """Those of SciPy."""
        expected = binomtest(count, total).proportion_ci(method="wilson")
        assert wilson_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)

    @pytest.mark.parametrize("rate", [0.005, 0.3, 1e-6])
    def test_pixel_quantile(self, rate: float) -> None:
        """The one of all pixels at once, though few are kept."""
        maps = np.random.default_rng(0).random((20, 12, 15), dtype=np.float32)
        quantile = PixelQuantile(len(maps), rate)
        for anomaly_map in maps:
            quantile.add(anomaly_map)
        rank = min(int(np.ceil((maps.size + 1) * (1 - rate) - 1e-9)), maps.size)
        assert quantile.compute() == np.sort(maps.ravel())[rank - 1]
        with pytest.raises(ValueError, match="maps are of several sizes"):
            quantile.add(maps[0, :5])


class TestModel:
    """The file that a calibration writes."""

    def test_scores_stay_and_decisions_change(self, trained: Trained, tmp_path: Path) -> None:
        good, bad = split(trained)
        before = [trained.xml.read_bytes(), trained.xml.with_suffix(".bin").read_bytes()]
        detector = Detector(trained.xml)
        calibration = detector.calibrate(good, bad, tmp_path / "new.xml", false_alarms=0.1)
        assert [trained.xml.read_bytes(), trained.xml.with_suffix(".bin").read_bytes()] == before
        calibrated = Detector(tmp_path / "new.xml")
        assert calibrated.decision_threshold == calibration.threshold
        assert calibrated.model_hash != detector.model_hash
        assert float(calibrated.metadata["image_threshold"]) == pytest.approx(calibration.threshold, rel=1e-6)
        stored = [float(score) for score in calibrated.metadata["calibration_scores"].split()]
        assert sorted(stored) == pytest.approx(sorted(calibration.good), rel=1e-5)
        predictions = calibrated.predict([*good, *bad])
        for old, new in zip(detector.predict([*good, *bad]), predictions, strict=True):
            assert old.score == new.score
            np.testing.assert_array_equal(old.anomaly_map, new.anomaly_map)
            assert new.is_anomalous == (new.score > calibration.threshold)
            np.testing.assert_array_equal(new.mask, new.anomaly_map > calibration.pixel_threshold)
        assert sum(new.is_anomalous for new in predictions[: len(good)]) == calibration.false_alarms
        assert sum(not new.is_anomalous for new in predictions[len(good) :]) == calibration.misses

    def test_agrees_with_the_engine(self, trained: Trained, tmp_path: Path) -> None:
        """From the same pictures, a training's validation learns the same thresholds."""
        good, bad = split(trained)
        labels, raw = trained.values("gt_label"), trained.values("raw_score")
        detector = Detector(trained.xml)
        calibration = detector.calibrate(good, [], tmp_path / "a.xml", false_alarms=0.05)
        expected = engine_threshold(0.95, raw[~labels], labels[~labels])
        metadata = Detector(tmp_path / "a.xml").metadata
        assert float(metadata["raw_image_threshold"]) == pytest.approx(expected, rel=1e-4)
        maps = trained.values("anomaly_map")[~labels].ravel()
        assert calibration.pixel_threshold == pytest.approx(
            engine_threshold(0.995, maps, np.zeros_like(maps, dtype=bool)), abs=1e-5
        )
        calibration = detector.calibrate(good, bad, tmp_path / "b.xml")
        called = [prediction.is_anomalous for prediction in Detector(tmp_path / "b.xml").predict(trained.paths)]
        np.testing.assert_array_equal(called, raw > engine_threshold(0.95, raw, labels))

    def test_calibrated_twice(self, trained: Trained, tmp_path: Path) -> None:
        """As if it had been calibrated once."""
        good, bad = split(trained)
        Detector(trained.xml).calibrate(good, bad, tmp_path / "first.xml", recall=0.5)
        Detector(tmp_path / "first.xml").calibrate(good, bad, tmp_path / "second.xml", false_alarms=0.1)
        Detector(trained.xml).calibrate(good, bad, tmp_path / "once.xml", false_alarms=0.1)
        second, once = (Detector(tmp_path / f"{name}.xml").metadata for name in ("second", "once"))
        for name in ("raw_image_threshold", "raw_pixel_threshold"):
            assert float(second.pop(name)) == pytest.approx(float(once.pop(name)), rel=1e-6)
        assert second == once

    def test_model_that_gives_only_a_score(self, tmp_path: Path) -> None:
        """It decides by itself afterwards."""
        ops = openvino.opset13
        image = ops.parameter([1, 3, 8, 8], name="image")
        score = ops.reduce_mean(image, [1, 2, 3])
        score.output(0).set_names({"pred_score"})
        openvino.save_model(openvino.Model([score], [image]), tmp_path / "mean.xml", compress_to_fp16=False)
        good = [np.full((8, 8), level, dtype=np.uint8) for level in range(20)]
        calibration = Detector(tmp_path / "mean.xml").calibrate(good, [], tmp_path / "new.xml", false_alarms=0.1)
        assert calibration.pixel_threshold is None
        calibrated = Detector(tmp_path / "new.xml")
        assert [p.is_anomalous for p in calibrated.predict(good)] == [False] * 19 + [True]

    @pytest.mark.slow
    @pytest.mark.parametrize("build", [Padim, FeatureGANomaly])
    def test_model_with_a_backbone(
        self,
        trained: Trained,
        train_with_backbone: Callable[[Any], tuple[Path, ImageBatch]],
        tmp_path: Path,
        build: Any,
    ) -> None:
        """PaDiM as anomalib exports it, and ours."""
        good, bad = split(trained)
        detector = Detector(train_with_backbone(build)[0])
        assert detector.model_threshold == 0.5
        calibration = detector.calibrate(good, bad, tmp_path / "new.xml", recall=0.5)
        calibrated = Detector(tmp_path / "new.xml")
        for old, new in zip(detector.predict([*good, *bad]), calibrated.predict([*good, *bad]), strict=True):
            assert new.score == pytest.approx(old.score, abs=1e-5)
            assert new.is_anomalous == (new.score > calibration.threshold)

    def test_nothing_is_overwritten(self, trained: Trained, tmp_path: Path) -> None:
        """Neither the model itself nor an earlier one."""
        detector = Detector(trained.xml)
        with pytest.raises(FileExistsError, match="is there already"):
            detector.calibrate(trained.paths, [], trained.xml, false_alarms=0.5)
        with pytest.raises(ValueError, match=r"must end in \.xml"):
            detector.calibrate(trained.paths, [], tmp_path / "new.onnx", false_alarms=0.5)


def test_command(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders in; the model, its table and its histogram out."""
    for kind, paths in zip(("good", "bad"), split(trained), strict=True):
        (tmp_path / kind).mkdir()
        for number, path in enumerate(paths):
            (tmp_path / kind / f"{number}.png").write_bytes(Path(path).read_bytes())
    command = ["calibrate", str(trained.xml), str(tmp_path / "good"), str(tmp_path / "bad"), "--false-alarms", "0.1"]
    output = tmp_path / "new.xml"
    assert main([*command, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["threshold", f"{Detector(output).decision_threshold:.6g}"]
    assert [line.split()[0] for line in lines[1:4]] == ["pixel", "false", "misses"]
    assert "with a probability of at most 0.1" in lines[4] and "it takes 9 pictures or more" in lines[4]
    with Image.open(tmp_path / "new.png") as picture:
        assert len(picture.getcolors(1 << 16)) > 4  # Paper, ink, good and bad.
    assert main([*command, "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command[:3], "--false-alarms", "0.001", "--output", str(tmp_path / "more.xml")]) == 2
    assert "give 999 or more" in capsys.readouterr().err
    assert (
        main([*command[:2], str(tmp_path / "god"), "--false-alarms", "0.1", "--output", str(tmp_path / "a.xml")]) == 2
    )
    assert "There is no file or folder" in capsys.readouterr().err
