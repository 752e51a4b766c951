"""Pictures as files: SVG as it is, PNG through whichever converter is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tortie.base.errors import ConfigError, NotSupported, Unavailable

CONVERTERS = {
    "rsvg-convert": ("--output", "{png}", "{svg}"),
    "inkscape": ("--export-type=png", "--export-filename={png}", "{svg}"),
    "chromium": ("--headless", "--no-sandbox", "--disable-gpu", "--screenshot={png}", "{svg}"),
}
"""Programs that make a PNG of an SVG, and their arguments, the best first."""
_SECONDS = 60.0


def write(svg: str, path: Path) -> None:
    """Raises ConfigError for another ending than .svg and .png, NotSupported where nothing makes a PNG."""
    try:
        if path.suffix == ".svg":
            path.write_text(svg, encoding="utf-8")
        elif path.suffix == ".png":
            _convert(svg, path)
        else:
            raise ConfigError(f"{path}: a picture's name ends with .svg or .png", "--output")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "--output") from None


def _convert(svg: str, path: Path) -> None:
    program = next((name for name in CONVERTERS if shutil.which(name)), None)
    if program is None:
        raise NotSupported("nothing here makes a PNG of an SVG: apt-get install librsvg2-bin, or write FILE.svg")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "map.svg")
        source.write_text(svg, encoding="utf-8")
        words = [word.format(png=path.absolute(), svg=source) for word in CONVERTERS[program]]
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{program}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
