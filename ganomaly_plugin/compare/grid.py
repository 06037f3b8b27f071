# SPDX-License-Identifier: Apache-2.0
"""From a configuration to the runs of a comparison: models x datasets x categories x seeds."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomalib.pipelines.components.utils import get_iterator_from_grid_dict
from anomalib.utils.config import flatten_dict

KEYS = {"accelerator", "data", "every_epoch", "metrics", "model", "openvino", "reference", "seed"}
"""What a configuration may hold."""
ENTRY_KEYS = {
    "model": {"class_path", "every_epoch", "init_args", "name", "trainer", "tuned_on"},
    "data": {"class_path", "init_args", "name"},
}
"""What a model and a dataset may hold."""
MAX_SEED = 2**32 - 1
FAILURE = "failure.txt"
"""File in a run's folder that says why it failed."""
PROGRESS = "progress.txt"
"""File in an unfinished run's folder that says what it is at."""
METRICS = ("image_AUROC", "image_AP", "image_F1Max", "pixel_AUROC", "pixel_AUPRO")
"""What can be computed; the pixels' need masks."""
COMPRESSIONS = ("FP32", "FP16", "INT8", "INT8_PTQ")
"""Formats of the OpenVINO export that can be timed."""


@dataclass(frozen=True)
class Run:
    """One training and test: a model, a dataset's category, a seed.

    Attributes:
        model: Label of the model in tables.
        dataset: Label of the dataset.
        category: The values of the dataset's own grid, or ``all`` where it has none.
        seed: Seed of the training, and of the split unless the dataset's configuration names another.
        model_config: ``class_path`` and ``init_args`` of the model.
        data_config: ``class_path`` and ``init_args`` of the datamodule.
        trainer: Arguments of anomalib's engine.
        openvino: Formats in which to export the model for the timings; empty where it is not timed.
        metrics: What to compute; empty for all that the dataset allows.
        every_epoch: Whether the test images are scored after every epoch, not after the last alone.
    """

    model: str
    dataset: str
    category: str
    seed: int
    model_config: dict[str, Any]
    data_config: dict[str, Any]
    trainer: dict[str, Any]
    openvino: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    every_epoch: bool = False

    @property
    def path(self) -> Path:
        """Folder of the run, below the comparison's."""
        parts = (self.model, self.dataset, self.category, str(self.seed))
        return Path(*(re.sub(r"[^\w.=+-]+", "_", part) for part in parts))

    @property
    def title(self) -> str:
        """The run in words."""
        return f"{self.model} on {self.dataset} ({self.category}), seed {self.seed}"

    def to_json(self) -> str:
        """Return the run as text, the same text for equal runs."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {name: tuple(values[name]) for name in ("openvino", "metrics")})


@dataclass(frozen=True)
class Grid:
    """The runs of a comparison.

    Attributes:
        runs: All of them.
        reference: The model that the others are compared with.
        config: The configuration itself.
        tuned_on: By model, the categories of each dataset on whose test images its settings were chosen.
    """

    runs: list[Run]
    reference: str
    config: dict[str, Any] = field(repr=False)
    tuned_on: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Labels of the models, in the configuration's order."""
        return list(dict.fromkeys(run.model for run in self.runs))


def read_grid(config: dict[str, Any]) -> Grid:
    """Lay out the runs of a configuration.

    ``model``, ``data`` and ``seed`` take anomalib's ``grid`` key with a list of alternatives, and so does any argument
    inside them. A model may have a ``name`` for tables, a ``trainer`` section for the engine, an ``every_epoch`` that
    overrides the comparison's, and ``tuned_on``, which lists by dataset the categories on whose test images its
    settings were chosen; a dataset may have a ``name``. Where ``openvino`` lists formats, the first category and seed
    of each dataset are timed.

    Args:
        config: Content of the YAML file's section ``compare``.

    Raises:
        ValueError: If a key is unknown or missing, a value is not allowed, or something stands in it twice.
    """
    _check_keys(config)
    seeds = _seeds(config.get("seed", 0))
    metrics = tuple(config.get("metrics", ()))
    models: list[dict[str, Any]] = []
    tuned_on = {}
    for entry in _alternatives(config["model"]):
        for variant in get_iterator_from_grid_dict({key: entry[key] for key in entry if key != "tuned_on"}):
            label = _label(variant, entry)
            tuned_on[label] = _tuned_on(label, entry.get("tuned_on"))
            models.append({
                "model": label,
                "model_config": _class_config(variant),
                "trainer": {"accelerator": config.get("accelerator", "auto")} | _section(variant, "trainer"),
                "every_epoch": variant.get("every_epoch", config.get("every_epoch", False)),
            })  # fmt: skip
    labels = [model["model"] for model in models]
    doubled = _doubled(labels)
    if doubled:
        msg = f"Two models are called {', '.join(doubled)}: give each a name of its own with the key 'name'."
        raise ValueError(msg)
    reference = config.get("reference", labels[0])
    if reference not in labels:
        msg = f"reference is {reference!r}, which is none of the models: choose one of {', '.join(labels)}."
        raise ValueError(msg)
    if not all(isinstance(model["every_epoch"], bool) for model in models):
        msg = f"every_epoch is {', '.join(str(model['every_epoch']) for model in models)}; it takes true or false."
        raise ValueError(msg)
    runs = []
    for entry in _alternatives(config["data"]):
        name = entry.get("name", str(entry["class_path"]).rpartition(".")[2])
        for number, variant in enumerate(get_iterator_from_grid_dict(entry)):
            category = ", ".join(str(value) for value in _chosen(variant, entry).values()) or "all"
            data = _class_config(variant)
            for seed in seeds:
                timed = number == 0 and seed == seeds[0]
                openvino = tuple(config.get("openvino", [])) if timed else ()
                shared = {"dataset": name, "category": category, "seed": seed, "data_config": data}
                runs += [Run(**shared, openvino=openvino, metrics=metrics, **model) for model in models]
    places = _doubled(str(run.path).casefold() for run in runs)  # Not all file systems tell capitals.
    if places:
        first, other, *_ = (run.title for run in runs if str(run.path).casefold() == places[0])
        msg = f"Twice in the comparison, or with one folder for the results of both: {first}; {other}. "
        raise ValueError(msg + "Remove one, or give models and datasets names of their own with the key 'name'.")
    return Grid(runs, reference, config, tuned_on)


def _seeds(section: Any) -> list[int]:
    seeds = section["grid"] if isinstance(section, dict) and set(section) == {"grid"} else [section]
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            msg = f"seed is {seed!r}; it takes a whole number from 0 to {MAX_SEED}, or several in a list under 'grid'."
            raise ValueError(msg)
    if doubled := _doubled(map(str, seeds)):
        msg = f"The seed {doubled[0]} stands twice in the comparison, which would count its runs twice: remove one."
        raise ValueError(msg)
    return seeds


def _doubled(values: Iterable[str]) -> list[str]:
    """Return what stands more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _check_keys(config: dict[str, Any]) -> None:
    unknown = sorted(set(config) - KEYS)
    if unknown:
        msg = f"A comparison has no {', '.join(unknown)}: it takes {', '.join(sorted(KEYS))}."
        raise ValueError(msg)
    for key in ("model", "data"):
        if not config.get(key):
            msg = f"The comparison names no {key}: add one with class_path, or several in a list under 'grid'."
            raise ValueError(msg)
        for entry in _alternatives(config[key]):
            if not isinstance(entry, dict) or "class_path" not in entry:
                msg = f"A {key} of the comparison has no class_path: {entry}."
                raise ValueError(msg)
            name = entry.get("name", key)
            if not isinstance(name, str) or not name.strip(" ."):
                msg = f"The name of a {key} of the comparison is {name!r}: give it text, in quotes, or leave it out."
                raise ValueError(msg)
            if unknown := sorted(set(entry) - ENTRY_KEYS[key]):
                msg = (
                    f"The {key} {entry.get('name', entry['class_path'])} of the comparison takes no "
                    f"{', '.join(unknown)}: it takes {', '.join(sorted(ENTRY_KEYS[key]))}."
                )
                raise ValueError(msg)
    for key in ("model", "data", "seed"):
        for name, values in flatten_dict({key: config.get(key)}).items():
            if name.endswith("grid") and not (values and isinstance(values, list)):
                found = f"{values!r}, and no list" if values else "empty"
                msg = f"The grid {name} is {found}: list what to compare, or remove it."
                raise ValueError(msg)
    for key, known in (("openvino", COMPRESSIONS), ("metrics", METRICS)):
        values = config.get(key, [])
        if not isinstance(values, list) or not set(values) <= set(known):
            msg = f"{key} is {values}; it takes a list of {', '.join(known)}."
            raise ValueError(msg)
        if doubled := _doubled(values):
            msg = f"{key} is {values}, with {doubled[0]} twice: remove one."
            raise ValueError(msg)


def _alternatives(section: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a section, one or several."""
    return section["grid"] if set(section) == {"grid"} else [section]


def _chosen(variant: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return what a variant takes from its entry's grids, by the name of the argument."""
    values = flatten_dict(variant)
    grids = (key.removesuffix(".grid") for key in flatten_dict(entry) if key.endswith(".grid"))
    return {key.rpartition(".")[2]: values[key] for key in grids}


def _label(variant: dict[str, Any], entry: dict[str, Any]) -> str:
    """Name a model after its class, unless it has a name, and after what its own grids vary."""
    name = variant.get("name", str(variant["class_path"]).rpartition(".")[2])
    return " ".join([name, *(f"{key}={value}" for key, value in _chosen(variant, entry).items())])


def _class_config(variant: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": variant["class_path"], "init_args": _section(variant, "init_args")}


def _section(variant: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a section of a model or dataset, which may be missing or empty."""
    section = variant.get(key) or {}
    if not isinstance(section, dict):
        msg = f"{key} of {variant.get('name', variant['class_path'])} is {section!r}; it takes names with their values."
        raise ValueError(msg)
    return section


def _tuned_on(label: str, section: Any) -> dict[str, list[str]]:
    """Return the categories of each dataset on which a model's settings were chosen, as text."""
    section = section or {}
    if not isinstance(section, dict) or not all(isinstance(names, list) for names in section.values()):
        msg = f"tuned_on of {label} is {section!r}; it takes lists of categories by the dataset's name, as digits: [8]."
        raise ValueError(msg)
    return {dataset: [str(name) for name in names] for dataset, names in section.items()}
