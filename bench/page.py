"""Size of the report page, and main thread time of pointing at a word in headless Chromium.

python -m bench.page     two answers of 400 words over a prompt of 4000 positions (2880 of an image), with random relevance
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from tests.report.examples import generation, picture, prompt

from limelight.report.media import Media
from limelight.report.page import Case, save_page

POINT = """() => {
  const words = [...document.querySelectorAll(".w")].slice(0, 400);
  for (let i = 0; i < 100; i++) {
    words[4 * i].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    document.body.getBoundingClientRect();
  }
}"""


def main() -> None:
    of = prompt(("image", 2880, (48, 60), None), after=[f" t{i}" for i in range(1116)])
    text = " ".join(f"w{i}" for i in range(400))
    said = [generation(of, text.split(), text=text, seed=s, strategy=n) for s, n in ((0, "one"), (1, "other"))]
    media = Media([picture(640, 480)])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, answers in (("one answer", said[:1]), ("two side by side", said)):
            path = save_page(Path(folder) / "page.html", Case(answers, media))
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            loaded = spent(session)
            page.evaluate(POINT)
            each = {k: (v - loaded[k]) * 10 for k, v in spent(session).items()}
            print(
                f"{name}: {path.stat().st_size / 1e6:.2f} MB, ready after {1000 * loaded['TaskDuration']:.0f} ms, "
                f"pointing {each['TaskDuration']:.1f} ms a word (script {each['ScriptDuration']:.1f}, "
                f"style {each['RecalcStyleDuration']:.1f}, layout {each['LayoutDuration']:.1f})"
            )
            page.close()
        browser.close()


def spent(session: Any) -> dict[str, float]:
    return {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"] if "Duration" in m["name"]}


if __name__ == "__main__":
    main()
