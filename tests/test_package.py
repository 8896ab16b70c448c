"""The package as a whole: imports, version, layers, what it ships."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

import gradderiv

ROOT = Path(__file__).parents[1]


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


IMPORTS_TORCH = "import sys; {}; print('torch' in sys.modules)"


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import gradderiv", False),
        ("import gradderiv; gradderiv.__version__", False),
        ("import gradderiv.cli", False),
        ("import gradderiv; gradderiv.rules", False),
        ("import gradderiv; gradderiv.verify", True),  # the test can fail
    ],
)
def test_torch_is_imported_only_when_needed(code: str, imported: bool) -> None:
    assert python(IMPORTS_TORCH.format(code)).stdout.strip() == str(imported)


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "gradderiv", "--help"], capture_output=True, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    bare = []
    for _ in range(5):
        start = time.perf_counter()
        python("import rich.console, typer")
        bare.append(time.perf_counter() - start)
    assert min(times) < min(bare) + 0.3, f"{min(times):.2f} s, of which typer and rich {min(bare):.2f} s"


def test_public_names_load() -> None:
    for name in gradderiv.__all__:
        assert getattr(gradderiv, name) is not None
    assert set(gradderiv.__all__) <= set(dir(gradderiv))
    with pytest.raises(AttributeError, match="no attribute 'verfy'"):
        _ = gradderiv.verfy


def test_a_function_and_a_subpackage_never_share_a_name() -> None:
    packages = {p.parent.name for p in (ROOT / "gradderiv").glob("*/__init__.py")}
    modules = {p.stem for p in (ROOT / "gradderiv").glob("*.py")}
    assert not (packages | modules) & set(gradderiv.__all__)


def test_production_code_does_not_import_sympy() -> None:
    done = python(
        "import sys, gradderiv.functional, gradderiv.rules.multihead; print('sympy' in sys.modules)"
    )
    before = python("import sys, torch; print('sympy' in sys.modules)")
    assert done.stdout == before.stdout, done.stderr


def test_wheel_and_sdist_hold_what_they_should(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for file in (
        "gradderiv/py.typed",
        "gradderiv/prose.txt",
        "gradderiv/rules/multihead.py",
        "gradderiv/book/site/static/book.css",
    ):
        assert file in names
    chapters = sorted((ROOT / "derivations").glob("[0-9]*.py"))
    assert chapters
    assert all(f"gradderiv/derivations/{c.name}" in names for c in chapters)
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "gradderiv").rglob("*.py")}
    assert modules <= set(names), modules - set(names)
    assert not [n for n in names if n.startswith("tests")]
    with tarfile.open(sdist) as archive:
        packed = archive.getnames()
    assert any(n.endswith("/README.md") for n in packed)
    assert any(n.endswith("/LICENSE") for n in packed)
