# SPDX-License-Identifier: Apache-2.0
"""Write the tables of README and of the documentation from the files in ``benchmarks/results``.

    python -m benchmarks.tables

A page says where a table belongs, and everything between the two lines is replaced::

    <!-- table: digits_ten -->
    <!-- /table -->

Behind the name of a table there may be an argument, as in ``<!-- table: results_of GANomaly -->``.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pandas import DataFrame

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"(<!-- table: (\w+)(?: ([^>\n]+))? -->\n)(.*?)(<!-- /table -->)", flags=re.DOTALL)

BEST_EPOCH = "image_AUROC_best_epoch_selected_on_test"
CHANGE = "image_AUROC_mean_change_last_5_epochs"
NAMES = {
    "Autoencoder": "autoencoder",
    "FAnoGAN": "f-AnoGAN",
    "FeatureGANomaly": "GANomaly on features",
    "GANomaly, 256 px, one epoch": "256 px, one epoch",
    "Padim": "PaDiM",
    "Patchcore": "PatchCore",
    "SkipGANomaly": "Skip-GANomaly",
    "Stfpm": "STFPM",
    "anomalib Ganomaly": "anomalib's Ganomaly",
}
"""How tables name what a configuration names otherwise."""

FORMATS = ("torch", "FP32")
"""PyTorch and OpenVINO, as comparisons name them."""
TABLES: dict[str, Callable[..., str]] = {}
"""The tables by name."""


def table(function: Callable[..., str]) -> Callable[..., str]:
    """Register a table under its function's name."""
    TABLES[function.__name__] = function
    return function


def fill(text: str) -> str:
    """Replace the tables of a page.

    Raises:
        ValueError: If there is no table of a name.
    """

    def replace(block: re.Match[str]) -> str:
        start, name, argument, _, end = block.groups()
        if name not in TABLES:
            msg = f"There is no table '{name}'; choose from {', '.join(sorted(TABLES))}."
            raise ValueError(msg)
        return f"{start}\n{TABLES[name](*[argument] if argument else [])}\n{end}"

    return BLOCK.sub(replace, text)


def main() -> None:
    """Write all pages."""
    for page in PAGES:
        page.write_text(fill(page.read_text()))


@cache
def runs_of(name: str) -> DataFrame:
    """Read the runs of a comparison, one a row."""
    return pd.read_csv(RESULTS / f"{name}.csv", dtype={"category": str})


@cache
def timings_of(name: str) -> DataFrame:
    """Read the timed exports of a comparison, by model, dataset and format."""
    return pd.read_csv(RESULTS / f"{name}_timings.csv").set_index(["model", "dataset", "format"])


@cache
def measurements(name: str) -> Any:
    """Read what a script of ``benchmarks`` measured."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@cache
def tuning_categories(name: str) -> list[str]:
    """Return the categories on whose test images settings of any model of a comparison were chosen."""
    section = yaml.safe_load((ROOT / "configs" / "compare" / f"{name}.yaml").read_text())["compare"]
    tuned = [model.get("tuned_on", {}) for model in section["model"]["grid"]]
    found = {str(category) for datasets in tuned for categories in datasets.values() for category in categories}
    return sorted(found & set(runs_of(name)["category"]))


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def mean_of(runs: DataFrame, metric: str = "image_AUROC") -> "pd.Series[float]":
    """Return the means over the categories, by seed.

    Raises:
        ValueError: If a seed lacks categories that another has.
    """
    by_seed = runs.dropna(subset=[metric]).groupby("seed")
    if by_seed["category"].nunique().nunique() > 1:
        msg = f"The seeds have different categories: {by_seed['category'].unique().to_dict()}."
        raise ValueError(msg)
    means: pd.Series[float] = by_seed[metric].mean()
    return means


def figure(runs: DataFrame, metric: str = "image_AUROC") -> str:
    """Write the mean over categories and seeds and, from two seeds, the standard deviation over seeds."""
    if metric not in runs or runs[metric].isna().all():
        return ""
    return mean_and_deviation(mean_of(runs, metric))


def mean_and_deviation(values: "pd.Series[float]") -> str:
    """Write the mean of seeds' values and, from two seeds, their standard deviation."""
    deviation = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{deviation}"


def difference(runs: DataFrame, reference: DataFrame) -> str:
    """Write by how much the mean image AUROC of a model exceeds the reference's, and nothing for the reference."""
    if runs["model"].iloc[0] == reference["model"].iloc[0]:
        return ""
    return f"{mean_of(runs).mean() - mean_of(reference).mean():+.3f}"


def model_runs(name: str, models: Sequence[str]) -> dict[str, DataFrame]:
    """Return a comparison's runs of each model."""
    runs = runs_of(name)
    return {model: runs[runs["model"] == model] for model in models}


def by_category(name: str, models: Sequence[str], *, of_epochs: bool = True, reference: str = "") -> list[list[str]]:
    """Return the image AUROCs of models, a category in each row, and their means with and without tuning categories.

    Args:
        name: The comparison.
        models: The models, one a column.
        of_epochs: Whether to add what is known of all epochs, where it is.
        reference: The model from which the differences of the means are given.
    """
    runs = model_runs(name, models)
    categories = sorted(runs_of(name)["category"].unique())
    tuned = tuning_categories(name)
    titles = {"image_AUROC": "**mean, last epoch**"}
    if of_epochs:
        titles |= {BEST_EPOCH: "mean, best epoch on the test set", CHANGE: "mean change between the last 5 epochs"}
    rows = [[each, *(figure(only(frame, [each])) for frame in runs.values())] for each in categories]
    for metric, title in titles.items():
        if metric not in runs_of(name):
            continue
        without = [category for category in categories if category not in tuned]
        means = {title: categories} | ({f"without {', '.join(tuned)}": without} if tuned else {})
        for head, chosen in means.items():
            parts = {model: only(frame, chosen) for model, frame in runs.items()}
            whole = {model: frame["category"].nunique() == len(chosen) for model, frame in parts.items()}
            rows.append([head, *(figure(frame, metric) if whole[model] else "" for model, frame in parts.items())])
            if reference:
                rows.append([f"against {reference}", *(difference(each, parts[reference]) for each in parts.values())])
    return rows


def only(runs: DataFrame, categories: Sequence[str]) -> DataFrame:
    """Return the runs of some categories."""
    return runs[runs["category"].isin(categories)]


def cost_of(name: str, model: str, dataset: str) -> list[str]:
    """Return milliseconds an image in OpenVINO FP32 at batch 1 and the model's megabytes, if they were measured."""
    timed = (RESULTS / f"{name}_timings.csv").is_file()
    if not timed or (model, dataset, "FP32") not in timings_of(name).index:
        return ["", ""]
    timing = timings_of(name).loc[(model, dataset, "FP32")]
    return [f"{timing['p50']:.2f}", f"{timing['megabytes']:.1f}"]


@table
def digits_ten() -> str:
    """Write GANomaly beside anomalib's own, each of the digits anomalous."""
    models = ["GANomaly", "anomalib Ganomaly", "GANomaly, bf16"]
    rows = by_category("digits_ten", models)
    tuned = tuning_categories("digits_ten")
    parts = model_runs("digits_ten", models).values()
    rows.append([f"only {', '.join(tuned)}", *(figure(only(runs, tuned)) for runs in parts)])
    return format_table(["anomalous digit", *(NAMES.get(model, model) for model in models)], rows)


@table
def mnist_recipes() -> str:
    """Write three recipes of GANomaly on a part of MNIST."""
    rows = by_category("mnist_small", ["official code", "GANomaly, paper", "GANomaly"])
    return format_table(["anomalous digit", "official", "paper", "default"], rows)


@table
def mnist_scores() -> str:
    """Write three scores of the same trainings on a part of MNIST."""
    scores = {"relative": "GANomaly", "L1": "GANomaly, L1 score", "L2": "GANomaly, L2 score"}
    table = by_category("mnist_small", list(scores.values()), of_epochs=False)
    heads, *columns = zip(*table[-2:], strict=True)
    return format_table(["score", *heads], [[score, *means] for score, means in zip(scores, columns, strict=True)])


@table
def ablation() -> str:
    """Write what single changes to GANomaly's recipe do."""
    everything = runs_of("ablation")
    reference = everything[everything["model"] == "GANomaly"]
    categories = list(reference["category"])
    rows = []
    for model, runs in everything.groupby("model", sort=False):
        name = "the recipe" if model == "GANomaly" else str(model)
        rows.append([name, figure(runs), difference(runs, reference)])
        rows[-1] += [figure(only(runs, [category])) for category in categories]
    return format_table(["change", "mean", "difference", *(f"digit {category}" for category in categories)], rows)


@table
def feature_ablation() -> str:
    """Write what single changes to FeatureGANomaly's default do."""
    runs = runs_of("feature_ablation")
    rows = []
    for variant, group in runs.groupby("variant", sort=False):
        cells = [str(variant), f"{group['MB_FP16'].mean():.1f}"]
        for images in ("screw", "tile"):
            one = group[group["set"] == images]
            cells += [mean_and_deviation(one[f"{level}_AUROC"]) if len(one) else "" for level in ("image", "pixel")]
        whole = group["set"].nunique() == runs["set"].nunique()
        rows.append([*cells, mean_and_deviation(group.groupby("seed")["image_AUROC"].mean()) if whole else ""])
    head = ["variant", "MB", *(f"{images}, {level}" for images in ("screw", "tile") for level in ("image", "pixel"))]
    return format_table([*head, "mean of image"], rows)


@table
def mnist_rivals() -> str:
    """Write all detectors on a part of MNIST."""
    models = ["GANomaly", "Autoencoder", "VAE", "EGBAD", "AnoGAN", "FAnoGAN", "SkipGANomaly"]
    rows = by_category("mnist_small", models, of_epochs=False, reference="GANomaly")
    return format_table(["anomalous digit", *(NAMES.get(model, model) for model in models)], rows)


@table
def cifar10_small() -> str:
    """Write three recipes of GANomaly on a part of CIFAR-10."""
    rows = by_category("cifar10_small", ["official code", "GANomaly, paper", "GANomaly"])
    return format_table(["anomalous class", "official", "paper", "default"], rows)


@table
def digits() -> str:
    """Write all detectors on two anomalous digits."""
    everything = runs_of("digits")
    reference = everything[everything["model"] == "GANomaly"]
    rows = []
    for model, runs in everything.groupby("model", sort=False):
        name = NAMES.get(str(model), str(model))
        cells = [figure(runs), difference(runs, reference), figure(runs, "image_AP")]
        rows.append([name, *cells, *cost_of("digits", str(model), "digits")])
    return format_table(["", "image AUROC", "against GANomaly", "image AP", "OpenVINO, ms", "MB"], rows)


@table
def industrial(name: str = "industrial") -> str:
    """Write the detectors of a comparison on industrial images."""
    everything = runs_of(name)
    datasets = list(everything["dataset"].unique())
    rows = []
    for model, runs in everything.groupby("model", sort=False):
        cells = []
        for dataset in datasets:
            part = runs[runs["dataset"] == dataset]
            cells += [figure(part), figure(part, "pixel_AUROC") or "has no map"]
        rows.append([NAMES.get(str(model), str(model)), *cells, *cost_of(name, str(model), datasets[0])])
    heads = [f"{dataset}, {what}" for dataset in datasets for what in ("image AUROC", "pixel AUROC")]
    return format_table(["", *heads, "OpenVINO, ms", "MB"], rows)


@table
def my_folder() -> str:
    """Write what a folder of a few parts leads to, a seed in each row."""
    measured = measurements("my_folder")
    unseen = measured["settings"]["unseen"]
    rows = [
        [
            str(row["seed"]),
            f"{row['image_AUROC']:.3f}",
            f"{row['false_alarms']} of {unseen}",
            f"{row['found']} of {unseen}",
            f"{row['train_seconds']:.0f}",
        ]
        for row in measured["seeds"]
    ]
    return format_table(["seed", "image AUROC", "false alarms", "found", "training and test, s"], rows)


@table
def industrial_long() -> str:
    """Write GANomaly after a longer training on industrial images."""
    rows = []
    for _, run in runs_of("industrial_long").iterrows():
        model = NAMES.get(run["model"], "64 px, 30 epochs")
        metrics = [f"{run[metric]:.3f}" for metric in ("image_AUROC", "image_AP", "pixel_AUROC")]
        rows.append([run["dataset"], model, *metrics, f"{run['fit_seconds'] / 60:.1f}"])
    return format_table(["", "", "image AUROC", "image AP", "pixel AUROC", "training, minutes"], rows)


@table
def training_step(name: str = "training_step") -> str:
    """Write the time and memory of one training step of each variant."""
    names = {"anomalib": "anomalib's Ganomaly", "official": "the public code's order of work", "ours": "GANomaly"}
    sizes = measurements(name)["steps"]
    rows = []
    for variant in next(iter(sizes.values())):
        cells = []
        for size in sizes.values():
            step = size[variant]
            cells += [f"{step['milliseconds']:.0f}", f"{step['fastest']:.0f}", f"{step['speed_up']:.2f}"]
            cells += [f"{step['megabytes']:.0f}"]
        rows.append([names.get(variant, variant.replace("ours", "GANomaly,", 1)), *cells])
    heads = [f"{size} px: {what}" for size in sizes for what in ("ms", "fastest", "ratio", "peak MB")]
    return format_table(["", *heads], rows)


@table
def training_epoch() -> str:
    """Write the time of one epoch over the digits through anomalib's engine."""
    names = {"anomalib": "anomalib's Ganomaly", "ours": "GANomaly"}
    seconds = measurements("training_step")["epoch_seconds"]
    return format_table(["", "seconds an epoch"], [[names[key], f"{value:.1f}"] for key, value in seconds.items()])


@table
def cold_start() -> str:
    """Write the time and memory to the first result of a fresh interpreter."""
    rows = [
        [f"`{name}`" if "." in name else name, f"{cost['seconds']:.2f}", f"{cost['megabytes']:.0f}"]
        for name, cost in measurements("inference")["cold_start"].items()
    ]
    return format_table(["to the first result", "s", "MB"], rows)


@table
def inference(size: str) -> str:
    """Write latency and throughput at one size in pixels."""
    measured = measurements("inference")
    gflop, latencies = measured["sizes"][size].values()
    rows = []
    for variant, cost in latencies.items():
        cells = [f"{cost['p50']:.1f}", f"{cost['p95']:.1f}"]
        cells += [f"{cost[key]:.0f}" if (key := f"images_per_second_{batch}") in cost else "" for batch in (8, 64)]
        if variant.startswith("anomalib"):  # Its networks have other operations.
            rows.append([variant, *cells, ""])
        else:
            share = gflop / cost["p50"] * 1e3 / measured["peak_gflops"]
            rows.append([f"GANomaly, {variant}", *cells, f"{share:.0%}"])
    heads = ["p50, ms", "p95, ms", "batch 8, images/s", "batch 64, images/s", "of the peak"]
    return format_table([f"{size} px, {gflop:.3f} GFLOP", *heads], rows)


@table
def compression() -> str:
    """Write accuracy and size of the formats of OpenVINO."""
    measured = measurements("compression")
    rows = []
    for name in measured["digits"]:
        cells = []
        for formats in measured.values():
            auroc = formats[name]["auroc"]
            cells += [f"{auroc:.4f}", f"{auroc - formats['FP32']['auroc']:+.4f}", f"{formats[name]['megabytes']:.1f}"]
        rows.append([name, *cells])
    sets = {"digits": "digits", "mnist": "MNIST"}
    heads = [f"{sets[dataset]}{what}" for dataset in measured for what in (", AUROC", ", against FP32", ", MB")]
    return format_table(["", *heads], rows)


@table
def run_time() -> str:
    """Write milliseconds an image of all models in batches of 8, beside the paper's figures."""
    setups = {" input_channels=1": "32 px grey", " input_channels=3": "32 px RGB", " 64 px": "64 px RGB"}
    published = pd.read_csv(RESULTS / "published_run_time.csv").set_index("model")
    timings, tests = timings_of("run_time"), runs_of("run_time").set_index("model")
    rows = []
    for model in ("AnoGAN", "EGBAD", "GANomaly", "Autoencoder", "VAE", "FAnoGAN", "SkipGANomaly"):
        cells = []
        for setup, paper in zip(setups, published.columns, strict=True):
            if model + setup in tests.index:  # It cannot be exported; a test of 8 images was timed.
                cells += [f"{tests.loc[model + setup, 'test_seconds'] / 8 * 1e3:,.0f}", ""]
            else:
                rates = [timings.loc[(model + setup, "digits", kind), "images_per_second"] for kind in FORMATS]
                cells += [f"{1e3 / rate:.1f}" for rate in rates]
            cells.append(f"{published.loc[model, paper]:,g}" if model in published.index else "")
        rows.append([NAMES.get(model, model), *cells])
    heads = ["ms an image"]
    for setup, paper in zip(setups.values(), published.columns, strict=True):
        heads += [f"{setup}, PyTorch", f"{setup}, OpenVINO", f"paper, {paper}"]
    return format_table(heads, rows)


@table
def loading() -> str:
    """Write how long the images of an epoch take to load."""
    rows = []
    for record in measurements("loading")["records"]:
        load, epoch = record["loading_seconds"], record["epoch_seconds"]
        rows.append([f"`configs/{record['config']}.yaml`", f"{load:.1f}", f"{epoch:.0f}", f"{load / epoch:.1%}"])
    return format_table(["", "loading, s", "epoch, s", "share"], rows)


@table
def overview() -> str:
    """Write the image AUROCs of all detectors for README."""
    small, features, pixels = runs_of("digits"), runs_of("features"), runs_of("industrial")
    with_backbone = [*features["model"].unique(), "Patchcore"]  # Those of 128 pixels are in the documentation.
    parts = pd.concat([features, pixels[~pixels["model"].isin(with_backbone)]])
    datasets = list(parts["dataset"].unique())
    models = list(dict.fromkeys([*parts["model"], *small["model"]]))
    rows = []
    for model in models:
        cells = [figure(small[small["model"] == model])]
        cells += [figure(parts[(parts["model"] == model) & (parts["dataset"] == each)]) for each in datasets]
        rows.append([NAMES.get(model, model), *cells])
    return format_table(["image AUROC", "digits", *datasets], rows)


@table
def results_of(model: str) -> str:
    """Write all that is known of one model, for its card."""
    rows = []
    for name, title in {
        "digits": "digits 1 and 8",
        "digits_ten": "digits, all ten",
        "mnist_small": "MNIST, a part",
        "cifar10_small": "CIFAR-10, a part",
        "industrial": "",
    }.items():
        for dataset, runs in model_runs(name, [model])[model].groupby("dataset", sort=False):
            tuned = tuning_categories(name)
            untuned = runs[~runs["category"].isin(tuned)]
            without = figure(untuned) if tuned else ""
            seeds = ", ".join(str(seed) for seed in sorted(runs["seed"].unique()))
            seconds = f"{runs['fit_seconds'].median():,.0f}"
            rows.append([title or str(dataset), figure(runs), without, figure(runs, "pixel_AUROC"), seeds, seconds])
    heads = ["", "image AUROC", "without tuning categories", "pixel AUROC", "seeds", "training, s"]
    return format_table(heads, rows)


if __name__ == "__main__":
    main()
