# SPDX-License-Identifier: Apache-2.0
"""``ganomaly-edge model-server``: the files with which OpenVINO Model Server serves a model."""

import argparse
import json
import shutil
from typing import Any

from ganomaly_plugin.edge.exported_model import model_files, read_model

VERSION = "1"
"""Folder of the model's version; the server serves the highest number."""


def run(options: argparse.Namespace) -> int:
    """Write ``config.json``, and the model where the server looks for it.

    Raises:
        FileExistsError: If the folder holds something.
    """
    read_model(options.model)  # Says what is wrong with it.
    folder = options.output
    if folder.exists() and any(folder.iterdir()):
        msg = f"'{folder}' is not empty: name another folder (--output)."
        raise FileExistsError(msg)
    version = folder / options.name / VERSION
    version.mkdir(parents=True)
    for file in model_files(options.model):
        shutil.copyfile(file, version / f"model{file.suffix}")
    config = folder / "config.json"
    config.write_text(json.dumps(build_config(options.name, options.device), indent=2) + "\n")
    print(f"written to {folder}; serve it with: ovms --config_path {config} --rest_port 8000")
    return 0


def build_config(name: str, device: str) -> dict[str, Any]:
    """Return the server's configuration, whose paths are relative to its file.

    Scores are computed in float32, as everywhere in this package; the server would take bfloat16 where a processor has
    it.
    """
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    model = {"name": name, "base_path": name, "target_device": device, "plugin_config": settings}
    return {"model_config_list": [{"config": model}]}
