"""Pictures of the report of made-up results, wide and narrow, light and dark: `python -m tests.report.screens`.

They go to docs/report/ unless another folder is given. Needs chromium.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from giraffe_jax import report
from tests.report import fabricate

SIZES = {"wide": (1200, 3400), "narrow": (390, 5000)}
SCHEMES = {"light": 1, "dark": 0}  # of chromium's preferredColorScheme
LARGEST = 250_000  # bytes


def main(out):
    with tempfile.TemporaryDirectory() as folder:
        page = report.write([fabricate.write(Path(folder) / "fabricated", whole=True)])
        for size in SIZES:
            for scheme in SCHEMES:
                picture = shoot(page, Path(folder) / "picture.png", size, scheme)
                (out / f"{size}-{scheme}.png").write_bytes(small(picture))


def chromium(page, *options, profile):
    """What chromium has printed of a page."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--disable-background-networking", "--enable-logging=stderr", f"--user-data-dir={profile}", *options]
    return subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=300, check=True)


def shoot(page, picture, size, scheme):
    """The top of a page as an image. Chromium's window is never narrower than 500, so a narrow page is in a frame."""
    width, height = SIZES[size]
    frame = picture.with_suffix(".html")
    frame.write_text(
        f"<body style='margin:0'><iframe src='file://{page}' style='border:0;width:{width}px;height:{height}px'>"
    )
    chromium(
        frame, f"--screenshot={picture}", f"--window-size={max(width, 500)},{height}",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", profile=picture.parent / "profile",
    )  # fmt: skip
    return Image.open(picture).convert("RGB").crop((0, 0, width, height))


def small(image):
    """A PNG of as many colours as keep it below `LARGEST` bytes."""
    for colours in (256, 64, 32, 16):
        file = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
        if len(file.getvalue()) < LARGEST:
            break
    return file.getvalue()


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs" / "report")
    where.mkdir(parents=True, exist_ok=True)
    main(where)
