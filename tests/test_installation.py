# SPDX-License-Identifier: Apache-2.0
"""Real installations in fresh virtual environments, wheel and editable, and their removal.

The environments see this interpreter's packages through a path file, so that only the plugin itself is installed. A
path file does not run the path files of the folder it names, so the hook under test is the fresh environment's own.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside the repository, so that nothing is imported from the working folder."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=Path(sys.prefix),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the package."""
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_only_the_package(wheel: Path) -> None:
    """Package, hook and metadata; no tests, benchmarks or configs."""
    import zipfile

    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert top == {"ganomaly_plugin", "ganomaly_plugin.pth", "ganomaly_plugin-0.1.0.dist-info"}


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_use_and_uninstall(kind: str, wheel: Path, tmp_path: Path) -> None:
    """Each kind of installation serves the stock command, and leaves nothing behind."""
    environment = tmp_path / "environment"
    assert run(sys.executable, "-m", "venv", environment).returncode == 0
    python = environment / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    before = sorted(path.relative_to(site) for path in site.rglob("*") if "__pycache__" not in path.parts)

    source = {"wheel": [wheel], "editable": ["--editable", ROOT]}[kind]
    installed = run(python, "-m", "pip", "install", "--ignore-installed", "--no-deps", "--no-build-isolation", *source)
    assert installed.returncode == 0, installed.stderr

    script = "import sys; sys.argv[0] = 'anomalib'; from anomalib.cli.cli import main; main()"
    arguments = ["train", "--model", "ganomaly", "--data", "digits", "--print_config"]
    used = run(python, "-c", script, *arguments)
    assert used.returncode == 0, used.stderr
    assert yaml.safe_load(used.stdout)["model"]["class_path"] == "ganomaly_plugin.GANomaly"
    found = Path(run(python, "-c", "import ganomaly_plugin; print(ganomaly_plugin.__file__)").stdout.strip())
    assert found.is_relative_to(ROOT if kind == "editable" else site)

    removed = run(python, "-m", "pip", "uninstall", "--yes", "ganomaly-plugin")
    assert removed.returncode == 0, removed.stderr
    after = sorted(path.relative_to(site) for path in site.rglob("*") if "__pycache__" not in path.parts)
    assert after == before
    silent = run(python, "-c", "import sys; print([type(finder).__name__ for finder in sys.meta_path])")
    assert silent.stderr == ""
    assert "AwaitAnomalib" not in silent.stdout
