"""The README and the page of measurements: their commands exist, their links lead somewhere, their Python runs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import typer
from napari_isdnet_training.config import load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".github/results/README.md")}
README = PAGES["README.md"]
USAGE_ERROR: Any = typer.BadParameter.__base__
APPS = {"napari-isdnet": "napari_isdnet.cli", "isdnet-train": "napari_isdnet_training.cli"}


def commands(text: str) -> list[list[str]]:
    """Every command line in a block, indented or fenced, or between backticks that calls one of our programs, as words.

    The name of a program alone is none.
    """
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        for part in re.split(r"&&|\|\||;", line.strip().removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            if len(words) > 1 and words[0] in APPS:
                found.append(words)
    return found


def python_blocks(text: str) -> list[str]:
    """Fenced blocks marked ``python run``."""
    return re.findall(r"^```python run\n(.*?)^```", text, re.M | re.S)


def judged(name: str) -> bool:
    """Whether a recipe holds out samples: by name, or as its data set is split."""
    data = load_recipe(name).data
    return data.layout != "scenes" or bool(data.validation)


def check(words: list[str]) -> None:
    """Fails where the program, the command or an option of it does not exist."""
    group: Any = typer.main.get_command(importlib.import_module(APPS[words[0]]).app)
    node, rest = group, words[1:]
    while rest and hasattr(node, "commands") and not rest[0].startswith("-"):
        assert rest[0] in node.commands, f"{shlex.join(words)}: there is no command '{rest[0]}'"
        node, rest = node.commands[rest[0]], rest[1:]
    known = {name for owner in (group, node) for p in owner.params for name in (*p.opts, *p.secondary_opts)} | {
        "--help"
    }
    for word in rest:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, f"{shlex.join(words)}: there is no option '{word}'"
    if rest and not hasattr(node, "commands"):  # a command alone is only named
        try:
            node.make_context(words[0], list(rest))
        except USAGE_ERROR as error:
            raise AssertionError(f"{shlex.join(words)}: {error}") from None
    if {"evaluate", "ablation", "features", "table"} & set(words[:3]) and words[0] == "isdnet-train":
        named = [recipe for recipe in recipe_names() if recipe in rest]
        assert all(judged(recipe) for recipe in named), f"{shlex.join(words)}: nothing of the recipe is held out"


def test_the_readme_opens_with_its_two_commands() -> None:
    first = [line.strip() for line in README.splitlines() if line.startswith("    pip install ")][:2]
    assert first == ['pip install ".[all]" && napari-isdnet demo', 'pip install -e ".[test]" && pytest']
    assert README.index(first[1]) < 1500


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_the_page_exists(page: str) -> None:
    found = commands(PAGES[page])
    assert len(found) > 10
    for words in found:
        check(words)


def test_the_check_notices_what_does_not_exist() -> None:
    text = "    napari-isdnet segment a.tif --output out --frobnicate\n\n```bash\n$ napari-isdnet frob  # what\n```\n"
    text += "See `napari-isdnet` and `isdnet-train\nbenchmark frob`.\n"
    found = commands(text)
    assert found == [
        ["napari-isdnet", "frob"],
        ["napari-isdnet", "segment", "a.tif", "--output", "out", "--frobnicate"],
        ["isdnet-train", "benchmark", "frob"],
    ]
    with pytest.raises(AssertionError, match="no command 'frob'"):
        check(found[0])
    with pytest.raises(AssertionError, match="no option '--frobnicate'"):
        check(found[1])
    with pytest.raises(AssertionError, match="output"):
        check(["napari-isdnet", "segment", "a.tif"])
    with pytest.raises(AssertionError, match="held out"):
        check(["isdnet-train", "benchmark", "ablation", "landcover-lite", "--output", "a.csv"])


def anchors(text: str) -> set[str]:
    """The names that headings of a page have as link targets."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name if name else ROOT / page).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(PAGES[str(target.relative_to(ROOT))]), link


@pytest.mark.parametrize("code", python_blocks(README))
def test_python_in_the_readme_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("scene.tif", np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
