"""pyright and mypy in strict mode accept the public surface and the examples, and infer what they should (M77)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CHECKED = [str(Path(__file__).parent / "typed_surface.py"), str(ROOT / "examples")]


@pytest.mark.timeout(600)
def test_pyright_in_strict_mode(tmp_path: Path) -> None:
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": CHECKED,
                "extraPaths": [str(ROOT / "src")],
                "typeCheckingMode": "strict",
                "pythonVersion": "3.11",
            }
        )
    )
    arguments = ["-m", "pyright", "-p", str(settings), "--pythonpath", sys.executable]
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.timeout(600)
def test_mypy_in_strict_mode(tmp_path: Path) -> None:
    arguments = ["-m", "mypy", "--strict", "--python-version", "3.11", "--cache-dir", str(tmp_path), *CHECKED]
    found = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert found.returncode == 0, found.stdout + found.stderr
