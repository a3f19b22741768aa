"""What pip makes of the package: the hook's files, the literal command, and nothing left after uninstalling."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs the extra `tests`")

REPO = Path(__file__).resolve().parents[1]
HOOK_FILES = {"_sb3_rgrl_hook.py", "sb3_rgrl_zoo.pth", "sb3_rgrl_zoo.start"}


def run(command: list, cwd: Path) -> str:
    """Run a command that must succeed, away from the checkout, and return all it printed."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SB3_RGRL_NO_ZOO_HOOK")}
    # Without an index: nothing may be downloaded.
    env.update(PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_CONFIG_FILE=os.devnull)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{output}"
    return output


def make_venv(path: Path) -> tuple[Path, Path]:
    """
    A virtual environment without pip that sees the packages of this one, but not their start-up hooks.

    :param path: where to make it
    :return: its Python and its site-packages
    """
    venv.create(path, with_pip=False)
    scripts, names = (
        ("Scripts", ("Lib",)) if os.name == "nt" else ("bin", ("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    )
    site_packages = path.joinpath(*names, "site-packages")
    (site_packages / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return path / scripts / "python", site_packages


@pytest.mark.parametrize("options", [[], ["--editable"]], ids=["wheel", "editable"])
def test_install_and_uninstall(options: list[str], tmp_path: Path) -> None:
    python, site_packages = make_venv(tmp_path / "venv")
    before = set(tmp_path.rglob("*"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--no-deps", "--no-build-isolation", *options, REPO], tmp_path)

    record = next(site_packages.glob("sb3_rgrl-*.dist-info/RECORD")).read_text()
    assert {line.split(",")[0] for line in record.splitlines()} >= HOOK_FILES
    # Wheels carry the hyperparameters and the marker for type checkers inside the package.
    installed = site_packages / "sb3_rgrl"
    assert installed.is_dir() != bool(options)
    assert options or (
        all((installed / "hyperparams" / name).is_file() for name in ("rgrl.yml", "rgrl_paper.yml"))
        and (installed / "py.typed").is_file()
    )

    assert "rgrl" in run([python, "-m", "rl_zoo3.cli", "train", "--help"], tmp_path)
    config = run([python, "-c", "import sb3_rgrl.zoo as z; print(z.default_config_path())"], tmp_path).strip()
    assert Path(config) == (REPO / "hyperparams" if options else installed / "hyperparams") / "rgrl.yml"

    run([*pip, "uninstall", "--yes", "sb3-rgrl"], tmp_path)
    assert set(tmp_path.rglob("*")) - before == set()
