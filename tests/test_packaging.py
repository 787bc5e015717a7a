"""The package list, what the wheel and the source archive hold, and that npe2 finds the manifest in all of them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import napari_isdnet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
MANIFEST = "napari_isdnet_manifest"
ENTRY_POINTS = {"napari-isdnet", "isdnet-train"}
TOP_LEVEL = {"napari_isdnet", "training", "tests"}


def folder_of(package: str) -> Path:
    """Where a package's files lie, by the longest matching entry of package-dir."""
    parts = package.split(".")
    for length in range(len(parts), 0, -1):
        base = SETUPTOOLS["package-dir"].get(".".join(parts[:length]))
        if base is not None:
            return ROOT.joinpath(base, *parts[length:])
    return ROOT.joinpath(*parts)


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return ".".join(("napari_isdnet_training" if parts[0] == "training" else parts[0], *parts[1:]))


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_the_package_list_is_what_the_folders_hold() -> None:
    listed = SETUPTOOLS["packages"]
    code = {path.parent for top in ("napari_isdnet", "training") for path in (ROOT / top).rglob("*.py")}
    assert sorted(listed) == sorted({package_of(folder) for folder in code} | {MANIFEST})
    assert all((folder / "__init__.py").is_file() for folder in code)
    assert all(folder_of(package).is_dir() for package in listed)


def test_nothing_but_agreed_folders_at_the_top_and_no_python_file() -> None:
    tops = {name.split("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}
    assert tops <= TOP_LEVEL
    assert not list(ROOT.glob("*.py"))


def test_names_agree() -> None:
    manifest = (ROOT / "napari.yaml").read_text()
    assert f"name: {PYPROJECT['project']['name']}\n" in manifest
    assert PYPROJECT["project"]["entry-points"]["napari.manifest"] == {"napari-isdnet": f"{MANIFEST}:napari.yaml"}
    assert SETUPTOOLS["package-data"][MANIFEST] == ["napari.yaml"]


def test_every_import_of_a_library_is_a_declared_dependency() -> None:
    from tests.test_layers import files, imports

    project = PYPROJECT["project"]
    declared = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    names = {_normal(item) for item in declared}
    modules = {"skimage": "scikit-image", "PIL": "pillow", "openslide": "openslide-python"}
    modules |= {"mmseg": "onedl-mmsegmentation", "mmengine": "onedl-mmengine", "pydensecrf": "pydensecrf2"}
    found = {module.split(".")[0] for path in files("napari_isdnet", "training") for module, _ in imports(path)}
    found -= sys.stdlib_module_names | {"napari_isdnet", "napari_isdnet_training"}
    missing = {name for name in found if _normal(modules.get(name, name)) not in names}
    # What a declared library is made of: vispy draws for napari, numcodecs packs for zarr, distributed is dask's.
    assert missing <= {"vispy", "numcodecs", "distributed"}


def _normal(requirement: str) -> str:
    name = requirement
    for stop in "[<>=!~; ":
        name = name.split(stop)[0]
    return name.lower().replace("_", "-")


def test_npe2_finds_the_manifest_of_the_installed_package() -> None:
    code = "from npe2 import PluginManifest; print(PluginManifest.from_distribution('napari-isdnet').name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "napari-isdnet", done.stderr


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, source archive) built from a copy of the tracked files, so that no left-over build folder gets in."""
    copy, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in {*tracked(), *_code()}:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))


def _code() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for top in ("napari_isdnet", "training")
        for path in (ROOT / top).rglob("*.py")
    ]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(info).decode())
        entries = wheel.read(info.replace("METADATA", "entry_points.txt")).decode()
    wanted = {
        name.replace("training/", "napari_isdnet_training/", 1) if name.startswith("training/") else name
        for name in _code()
    }
    assert wanted <= names
    assert {f"{MANIFEST}/napari.yaml", "napari_isdnet/py.typed"} <= names
    assert {path.name for path in (ROOT / "napari_isdnet" / "model").glob("*.safetensors")} <= {
        Path(n).name for n in names
    }
    assert {path.name for path in (ROOT / "training" / "recipes").glob("*.toml")} <= {Path(n).name for n in names}
    tops = {name.split("/")[0] for name in names}
    assert tops == {"napari_isdnet", "napari_isdnet_training", MANIFEST, info.split("/")[0]}
    assert metadata["Version"] == napari_isdnet.__version__
    assert all(command in entries for command in ENTRY_POINTS)


@pytest.mark.slow
def test_the_source_archive_builds_the_same_package(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(archives[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    assert (source / "napari.yaml").is_file()
    assert (source / "LICENSE").is_file()
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as again, zipfile.ZipFile(archives[0]) as first:
        assert set(again.namelist()) == set(first.namelist())


@pytest.mark.slow
def test_the_wheel_installs_and_its_command_and_manifest_are_found(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment of its own that sees this one's libraries, but not its editable install."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    site = next(folder.rglob("site-packages"))
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(site)
    code = (
        "import sys; own = list(sys.path); sys.path += sys.argv[1].split('|')\n"
        "import napari_isdnet, napari_isdnet_training\n"
        "from npe2 import PluginManifest\n"
        "print(napari_isdnet.__file__); print(napari_isdnet_training.__file__)\n"
        "print(PluginManifest.from_distribution('napari-isdnet').name)\n"
        "from napari_isdnet import cli\n"
        "from napari_isdnet.model.checkpoint import DEFAULT_MODEL, find_model, load_model\n"
        "load_model(DEFAULT_MODEL); print(find_model(DEFAULT_MODEL))\n"
        "assert all(cli.run(cli.app, words, 'napari-isdnet') == 0 for words in (['--version'], ['models', '--json']))\n"
    )
    libraries = "|".join(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run([python, "-c", code, libraries], capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.split()
    assert done.returncode == 0, done.stderr
    assert lines[3].startswith(str(site))  # the model that ships
    assert lines[0].startswith(str(site))
    assert lines[1].startswith(str(site))
    assert lines[2] == "napari-isdnet"


@pytest.mark.parametrize(
    ("module", "command"), [("napari_isdnet", "napari-isdnet"), ("napari_isdnet_training", "isdnet-train")]
)
def test_the_commands_start_as_modules(module: str, command: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert f"Usage: {command} " in done.stdout
