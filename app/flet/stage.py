"""Copy the app with the part of Delta that it needs, for `flet build`: `python app/flet/stage.py OUT [BUNDLE]`.

Delta as a package asks for torch, which no phone has. What is copied is what importing the app's logic has loaded, so
that the list cannot be wrong. A bundle goes into the assets; without one the app has the students that Delta ships.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOT_FOR_PHONES = shutil.ignore_patterns("__pycache__", "images", "stage.py", "build", "README.md", "*.safetensors")
LIST_FILES = """
import sys
import delta_flet.desktop_camera, delta_flet.layout, delta_flet.session
from delta import colormaps
from delta_flet import pictures
modules = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "delta"]
print(*modules, colormaps.TABLES_PATH, *pictures.sample_photos(), sep="\\n")
"""


def stage(out: Path, bundle: Path | None = None) -> Path:
    """Write the copy to `out`, which must not hold anything yet, and return it."""
    shutil.copytree(HERE, out, ignore=NOT_FOR_PHONES)
    source, shipped = out / "src", ROOT / "delta" / "bundled"
    for file in _files_of_delta():
        target = source / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    if bundle:
        shutil.copytree(bundle, source / "assets" / "model", ignore=NOT_FOR_PHONES)
    else:
        for card in shipped.glob("*/delta.json"):
            shutil.copytree(card.parent, source / card.parent.relative_to(ROOT), ignore=NOT_FOR_PHONES)
    return out


def _files_of_delta() -> list[Path]:
    """List what the app without its screen has loaded of Delta, and the data and photos beside it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE / "src")])}
    command = [sys.executable, "-c", LIST_FILES]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return [Path(line).resolve() for line in done.stdout.splitlines()]


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {sys.argv[0]} OUT [BUNDLE]")
    print(stage(Path(sys.argv[1]), *map(Path, sys.argv[2:])))
