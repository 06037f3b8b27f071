# SPDX-License-Identifier: Apache-2.0
"""What the base of all models owes its subclasses: one inheritance, whole signatures, any space, old checkpoints."""

import inspect
import warnings
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import nn

from ganomaly_plugin import GANomaly
from ganomaly_plugin.models.components import export
from ganomaly_plugin.models.components.detector_module import DetectorModule
from ganomaly_plugin.models.components.post_processor import OneClassPostProcessor
from ganomaly_plugin.models.components.space import Space
from tests.engine import build_engine

COMPONENTS = {"pre_processor", "post_processor", "evaluator", "visualizer"}
OURS = [entry for entry in entry_points(group="anomalib.models") if entry.module.startswith("ganomaly_plugin")]


QUICK: dict[str, dict[str, Any]] = {"anogan": {"steps": 2}, "feature_ganomaly": {"pre_trained": False, "rank": 0.1}}
"""What models need to be quick, and to need no download."""


def every_model(but: str = "") -> pytest.MarkDecorator:
    """All models that the package registers, perhaps but one."""
    return pytest.mark.parametrize("entry", [each for each in OURS if each.name != but], ids=lambda entry: entry.name)


@every_model()
def test_one_class_above_each_model(entry: EntryPoint) -> None:
    """A model derives from the abstract base, and the base from anomalib's alone."""
    ours = [base for base in entry.load().__mro__ if base.__module__.startswith("ganomaly_plugin")]
    assert ours == [entry.load(), DetectorModule]
    assert DetectorModule.__bases__ == (AnomalibModule,)
    assert inspect.isabstract(DetectorModule)
    assert not inspect.isabstract(entry.load())


@every_model()
def test_arguments_have_types_and_texts(entry: EntryPoint) -> None:
    """The command line, which reads signatures through `**kwargs`, knows type, default and text of each argument."""
    parameters = {parameter.name: parameter for parameter in get_signature_parameters(entry.load(), "__init__")}
    assert set(inspect.signature(DetectorModule.__init__).parameters) - {"self"} <= set(parameters)
    for name, parameter in parameters.items():
        assert parameter.annotation not in {inspect.Parameter.empty, Any}, name
        assert parameter.default is not inspect.Parameter.empty, name
        assert parameter.doc, name


@every_model()
def test_help_lists_each_argument_with_its_text(entry: EntryPoint, capsys: pytest.CaptureFixture[str]) -> None:
    """`--model.help` prints names and texts, those of the base among them."""
    with pytest.raises(SystemExit):
        AnomalibCLI(["train", "--model.help", entry.name])
    shown = " ".join(capsys.readouterr().out.split())
    for parameter in get_signature_parameters(entry.load(), "__init__"):
        assert f"--model.{parameter.name}" in shown
        assert " ".join(str(parameter.doc).split()) in shown


@every_model()
def test_hyper_parameters_are_complete(entry: EntryPoint) -> None:
    """What a checkpoint keeps is each argument but anomalib's components, with the values in effect."""
    model = entry.load()(image_size=32, lr=0.003, visualizer=False)
    expected = {parameter.name: parameter.default for parameter in get_signature_parameters(entry.load(), "__init__")}
    expected = {name: default for name, default in expected.items() if name not in COMPONENTS}
    assert dict(model.hparams) == expected | {"image_size": (32, 32), "lr": 0.003}


class ToySpace(Space):
    """Random frozen features of 152 channels at an eighth of the image's size."""

    def __init__(self, image_size: tuple[int, int]) -> None:
        super().__init__(image_size, channels=152, size=(image_size[0] // 8, image_size[1] // 8), map_sigma=2.0)
        self.backbone = nn.Conv2d(3, 152, 8, stride=8).requires_grad_(False)

    def target(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(images)

    def error(self, target: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        return (target - reconstruction).abs()

    def show(self, reconstruction: torch.Tensor) -> None:
        return None


@pytest.mark.slow
@every_model(but="feature_ganomaly")
def test_trains_in_another_space(entry: EntryPoint, tmp_path: Path, datamodule: Folder) -> None:
    """Networks reconstruct a 152x32x32 tensor, and a frozen part of its space stays as it is, once, in all copies."""

    class InToySpace(entry.load()):  # type: ignore[misc]
        def build_space(self) -> Space:
            return ToySpace(self.hparams["image_size"])

    model = InToySpace(image_size=256, n_features=4, latent_vec_size=4, **QUICK.get(entry.name, {}))
    backbone = model.model.space.backbone
    before = backbone.weight.clone()
    engine = build_engine(tmp_path, limit_train_batches=2)
    engine.fit(model, datamodule=datamodule)
    engine.test(model, datamodule=datamodule)
    assert list(tmp_path.rglob("images/**/*.png"))
    assert torch.equal(backbone.weight, before)
    assert backbone.weight.grad is None
    optimised = {id(parameter) for group in model.optimizers().param_groups for parameter in group["params"]}
    assert id(backbone.weight) not in optimised
    assert [name for name in model.state_dict() if "backbone" in name] == [
        "model.space.backbone.weight",
        "model.space.backbone.bias",
    ]
    if model.model.average is not None:
        assert not any("backbone" in name for name, _ in model.model.average.named_parameters())
    with torch.no_grad():
        output = model.eval().model(torch.rand(2, 3, 256, 256) * 2 - 1)
        exported = model.model.for_inference()(torch.rand(1, 3, 256, 256))
    assert output.reconstruction.shape == (2, 152, 32, 32)
    assert output.anomaly_map.shape == (2, 1, 256, 256)
    assert exported.anomaly_map.shape == (1, 1, 256, 256)
    assert output.pred_score.isfinite().all()


def test_checkpoint_of_version_0_1_0() -> None:
    """A checkpoint written by version 0.1.0, with the scores that it gave, and one of its whitened score."""
    folder = Path(__file__).parent / "checkpoints"
    for name in ("latent_l1", "latent_whitened"):
        model = GANomaly.load_from_checkpoint(folder / f"{name}.ckpt").eval()
        expected = torch.load(folder / f"{name}.pt", weights_only=True)
        with torch.no_grad():
            output = model.model(expected["images"])
        torch.testing.assert_close(output.pred_score, expected["pred_score"], rtol=1e-5, atol=0)
        torch.testing.assert_close(output.anomaly_map, expected["anomaly_map"], rtol=1e-5, atol=0)


def small_ganomaly() -> GANomaly:
    """A model that trains a step in a fraction of a second."""
    return GANomaly(image_size=32, n_features=4, latent_vec_size=8, visualizer=False)


@pytest.mark.parametrize(
    "arguments", [{"max_epochs": 1, "check_val_every_n_epoch": 2}, {"max_steps": 2, "limit_val_batches": 2}]
)
def test_sanity_check_gives_no_threshold(
    tmp_path: Path, datamodule: Folder, arguments: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Where training ends before its first validation, no threshold is that of the untrained network."""
    model = small_ganomaly()
    engine = Engine(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=2,
        enable_progress_bar=False,
        **arguments,
    )
    engine.fit(model, datamodule=datamodule)
    assert model.post_processor.image_threshold.isnan()
    engine.test(model, datamodule=datamodule)
    assert "No threshold was learnt" in caplog.text


def test_threshold_of_earlier_weights_is_reported(
    tmp_path: Path, datamodule: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Three epochs of four steps, of which the second alone is validated."""
    build_engine(tmp_path, max_epochs=3, check_val_every_n_epoch=2).fit(small_ganomaly(), datamodule=datamodule)
    assert "computed after step 8 of 12" in caplog.text
    caplog.clear()
    build_engine(tmp_path, max_epochs=2).fit(small_ganomaly(), datamodule=datamodule)
    assert "computed after step" not in caplog.text


@pytest.mark.slow
def test_untrained_exports_say_so(tmp_path: Path, datamodule: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """A warning at the export, and one where the file is loaded; none after a training."""
    from ganomaly_plugin.edge import Detector

    model = small_ganomaly()
    for method in (model.to_torch, model.to_openvino):  # By way of ONNX.
        caplog.clear()
        path = method(tmp_path)
        assert "has its initial weights" in caplog.text
    with pytest.warns(UserWarning, match="exported with its initial weights"):
        Detector(path)
    caplog.clear()
    build_engine(tmp_path, limit_train_batches=1).fit(model, datamodule=datamodule)
    model.to_torch(tmp_path)
    assert "initial weights" not in caplog.text
    export.write_metadata(path, export.metadata(model, model.trained_on, model.trained))  # As an export does.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector(path)


@pytest.mark.slow
def test_export_to_onnx(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What does not fit into one file is divided, unless the user says otherwise, and runs alike.

    No traceback tells of a conversion that fails; a version that needs one is refused.
    """
    import onnxruntime

    model = small_ganomaly()
    model.trained = True
    with pytest.raises(ValueError, match="opset_version is 12, but PyTorch's exporter writes 18 and later"):
        model.to_onnx(tmp_path, opset_version=12)
    with pytest.raises(ValueError, match="opset_version is 12"):
        model.to_openvino(tmp_path, onnx_kwargs={"opset_version": 12})
    monkeypatch.setattr(export, "LARGEST_ONNX_FILE", 1_000)
    divided = model.to_onnx(tmp_path, "divided")
    captured = capfd.readouterr()
    assert "Traceback" not in caplog.text + captured.out + captured.err
    assert "onversion" not in caplog.text + captured.out + captured.err
    forced = model.to_onnx(tmp_path, "forced", external_data=False, opset_version=20)
    assert {path.name for path in forced.parent.iterdir()} == {"divided.onnx", "divided.onnx.data", "forced.onnx"}
    image = {"input": torch.rand(1, 3, 40, 40).numpy()}
    scores = [onnxruntime.InferenceSession(path).run(["pred_score"], image)[0] for path in (divided, forced)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("anogan", ["discriminator", "generator"]),
        ("egbad", ["discriminator", "generator", "encoder"]),
        ("f_anogan", ["critic", "generator", "encoder"]),
        ("ganomaly", ["generator", "discriminator"]),
        ("skip_ganomaly", ["generator", "discriminator"]),
    ],
)
def test_optimiser_keeps_the_order_of_version_0_1_0(name: str, networks: list[str]) -> None:
    """Adam's state in a checkpoint has no names, so a resumed training relies on the order of the networks."""
    (entry,) = entry_points(group="anomalib.models", name=name)
    assert list(entry.load()(image_size=32, visualizer=False).model.networks) == networks


@every_model()
def test_arguments_have_names(entry: EntryPoint) -> None:
    """Positions would change their meaning whenever a model gets an argument."""
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        entry.load()(32)


class StopAtOnce(Callback):
    """Ends a training before its first step."""

    def on_train_start(self, trainer: Trainer, _pl_module: LightningModule) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 1000}, 1000),
        ({"max_steps": 7}, -1),
        ({"max_epochs": -1, "max_steps": 7}, -1),
        ({"max_time": {"minutes": 1}}, -1),
    ],
    ids=str,
)
@every_model()
def test_length_of_a_training(
    entry: EntryPoint, tmp_path: Path, datamodule: Folder, limits: dict[str, Any], expected: int | None
) -> None:
    """A documented number of epochs, which any limit of the user's replaces."""
    quick = QUICK.get(entry.name, {})
    model = entry.load()(image_size=32, n_features=4, latent_vec_size=4, visualizer=False, **quick)
    engine = build_engine(tmp_path, callbacks=[StopAtOnce()], **({"max_epochs": None} | limits))
    engine.fit(model, datamodule=datamodule)
    assert engine.trainer.max_epochs == (expected or type(model).default_epochs)


@every_model()
def test_search_of_a_learning_rate(entry: EntryPoint, tmp_path: Path, datamodule: Folder) -> None:
    """Lightning's callback finds one and trains with it."""
    quick = QUICK.get(entry.name, {})
    model = entry.load()(image_size=32, n_features=4, latent_vec_size=4, visualizer=False, **quick)
    # Losses below zero, f-AnoGAN's, would always seem to diverge.
    search = LearningRateFinder(num_training_steps=14, early_stop_threshold=None)
    engine = build_engine(tmp_path, max_epochs=4, callbacks=[search, StopAtOnce()])
    engine.fit(model, datamodule=datamodule)
    assert search.optimal_lr.suggestion() == model.hparams["lr"]
    assert engine.trainer.optimizers[0].param_groups[0]["lr"] == model.hparams["lr"]


def test_search_leaves_initial_weights(tmp_path: Path, datamodule: Folder) -> None:
    """Which are no trained ones."""
    model = small_ganomaly()
    before = {name: value.clone() for name, value in model.model.networks.named_parameters()}
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=4, accelerator="cpu", logger=False)
    Tuner(trainer).lr_find(model, datamodule=datamodule, num_training=14)
    assert all(torch.equal(value, before[name]) for name, value in model.model.networks.named_parameters())
    assert not model.trained


def test_search_of_a_batch_size(tmp_path: Path, datamodule: Folder) -> None:
    """By the name that anomalib's datamodules give it."""
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False)
    search = {"steps_per_trial": 1, "init_val": 4, "max_trials": 2, "batch_arg_name": "train_batch_size"}
    assert Tuner(trainer).scale_batch_size(small_ganomaly(), datamodule=datamodule, **search) == 8
    assert datamodule.train_batch_size == 8


def test_length_of_a_training_from_the_environment(
    tmp_path: Path, datamodule: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's variables are limits of the user's as well, and a trainer of Lightning's obeys like anomalib's."""
    for value, expected in (("4", 4), (None, 15)):
        if value:
            monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", value)
        else:
            monkeypatch.delenv("PL_TRAINER_MAX_EPOCHS")
        trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", callbacks=[StopAtOnce()], logger=False)
        trainer.fit(small_ganomaly(), datamodule=datamodule)
        assert trainer.max_epochs == expected


@pytest.mark.slow
def test_quantisation_refuses_as_anomalib_does(datamodule: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Its messages for what is missing or out of range, and its warning of a large drop."""
    pytest.importorskip("nncf")
    for quantise in (export.quantise, export.quantise_with_accuracy_control):
        with pytest.raises(ValueError, match="Datamodule must be provided for OpenVINO INT8_PTQ compression"):
            quantise(None)
    for drop in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"max_drop must be between 0 and 1, got {drop}"):
            export.quantise_with_accuracy_control(None, datamodule, max_drop=drop)
    for drop, reported in ((0.1, False), (0.2, True)):
        caplog.clear()
        with pytest.raises(ValueError, match="Datamodule must be provided"):
            export.quantise_with_accuracy_control(None, max_drop=drop)
        assert (f"max_drop={drop} is a large value" in caplog.text) == reported


@pytest.mark.parametrize("matches", [True, False])
def test_threshold_of_maps_without_masks(tmp_path: Path, datamodule: Folder, matches: bool) -> None:
    """That of the scores if it is asked for, otherwise the quantile; also after a checkpoint, and of 0.1.0's."""
    post_processor = OneClassPostProcessor(enable_threshold_matching=True) if matches else True
    model = GANomaly(image_size=32, n_features=4, latent_vec_size=8, visualizer=False, post_processor=post_processor)
    engine = build_engine(tmp_path)
    engine.fit(model, datamodule=datamodule)
    reloaded = GANomaly.load_from_checkpoint(engine.best_model_path)
    for processor in (model.post_processor, reloaded.post_processor):
        assert processor.enable_threshold_matching == matches
        assert processor.pixel_threshold.isfinite()
        assert (processor.pixel_threshold == processor.image_threshold) == matches
    old = OneClassPostProcessor()
    old.load_checkpoint_config({"enable_threshold_matching": True, "normal_quantile": 0.9})
    assert (old.enable_threshold_matching, old.normal_quantile) == (False, 0.9)


@pytest.mark.parametrize(
    ("stage", "precision"), [("fit", "bf16-true"), ("fit", "64-true"), ("test", "16-true"), ("predict", "bf16-true")]
)
def test_converted_weights_are_refused(tmp_path: Path, datamodule: Folder, stage: str, precision: str) -> None:
    """Before anything runs, since anomalib's images keep their 32 bits."""
    model = GANomaly(image_size=32, n_features=4, latent_vec_size=8, visualizer=False)
    with pytest.raises(ValueError, match=rf"trainer.precision is {precision}, .* choose 32-true, bf16-mixed"):
        getattr(build_engine(tmp_path, precision=precision), stage)(model, datamodule=datamodule)


@every_model()
def test_arguments_of_another_network_are_refused(entry: EntryPoint, tmp_path: Path) -> None:
    """load_from_checkpoint takes others, but not those that the weights and thresholds depend on."""
    arguments = {"image_size": 32, "n_features": 4, "latent_vec_size": 8, "visualizer": False}
    path = tmp_path / "model.ckpt"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(entry.load()(**arguments))
    trainer.save_checkpoint(path)
    others = {"n_features": 6, "image_size": 40, "map_sigma": 2.1, "white_level": 4095}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"does not fit this model: {name} is .* Build the model as it was"):
            entry.load().load_from_checkpoint(path, **{name: value})
    assert entry.load().load_from_checkpoint(path, lr=0.5).hparams["lr"] == 0.5
