"""A real browser without a window: opens a page in a frame of any width and says what only a browser can tell."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limits import HANGS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
DARK = "--blink-settings=preferredColorScheme=0"

#: Before anything else of the page: errors of scripts and of resources are kept.
EARLY = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.outerHTML.slice(0, 200))), true);
</script>"""

#: At its end: when all is loaded, with every <details> open, findings go to the frame around the page.
LATE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => { each.open = true; });
  const width = document.documentElement.clientWidth;
  const scrolled = element => element.parentElement && element.parentElement.closest(".scroll");
  const beyond = [...document.body.querySelectorAll("*")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && !scrolled(element) && (box.right > width + 0.5 || box.left < -0.5);
  });
  const images = [...document.images].map(image => ({
    figure: (image.closest("figure") || {}).id,
    complete: image.complete,
    width: image.naturalWidth,
    height: image.naturalHeight,
    shown: Math.round(image.getBoundingClientRect().width),
    dark: image.currentSrc !== image.src,
  }));
  const style = getComputedStyle(document.body);
  parent.postMessage({
    errors, width, images,
    scrollWidth: document.documentElement.scrollWidth,
    beyond: beyond.map(element => element.outerHTML.slice(0, 120)),
    background: style.backgroundColor,
    colour: style.color,
    fontSize: parseFloat(style.fontSize),
    tables: [...document.querySelectorAll("table")].map(table => [table.id, table.rows.length]),
  }, "*");
});
</script>"""

FRAME = """<!doctype html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"></head>
<body style="margin: 0"><iframe src="{page}" style="border: 0; width: {width}px; height: 900px"></iframe>
<pre id="findings"></pre><script>
addEventListener("message", event => {{
  document.getElementById("findings").textContent = JSON.stringify(event.data);
}});
</script></body></html>"""


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    findings: dict[str, Any]
    console: list[str]  # what the page, or the browser about it, wrote there


def visit(browser: str, page: Path, folder: Path, width: int, dark: bool) -> Visit:
    """Open a copy of a page that reports on itself. A frame, since a window is never narrower than 500 pixels."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)  # it forbids scripts, ours too
    copy = folder / f"copy_{width}_{dark}.html"
    copy.write_text(text.replace("<head>", "<head>" + EARLY).replace("</body>", LATE + "</body>"), encoding="utf-8")
    frame = folder / f"frame_{width}_{dark}.html"
    frame.write_text(FRAME.format(page=copy.name, width=width), encoding="utf-8")
    dom, console = dump(browser, frame, max(width, 500), dark)
    found = re.search(r'<pre id="findings">(.+?)</pre>', dom, flags=re.DOTALL)
    assert found, f"the page reported nothing: {dom[-2000:]}"
    return Visit(json.loads(html.unescape(found[1])), console)


def dump(browser: str, page: Path, width: int, dark: bool) -> tuple[str, list[str]]:
    """The document after it was loaded, and the lines of its console."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                *(browser, *OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},900"),
                *([DARK] if dark else []),
                *("--dump-dom", page.resolve().as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=HANGS,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
