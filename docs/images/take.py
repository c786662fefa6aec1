"""Take the screenshots of the report for the README and the documentation.

    sami report RUN && python docs/images/take.py RUN

Writes report.webp (a desktop's window) and report-phone.webp (a phone's, dark) beside this file.
Needs Chromium, and `pip install playwright pillow`.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
# Chooses the first principle in the list and scrolls to its first item.
TO_AN_ANSWER = """() => {
  const choice = document.getElementById("by-principle");
  choice.selectedIndex = [...choice.options].findIndex((option) => option.value.startsWith("="));
  choice.dispatchEvent(new Event("change"));
  document.querySelector("#items .item").scrollIntoView({behavior: "instant"});
}"""


def take(browser: Browser, page_file: Path, name: str, width: int, height: int, scheme: str, script: str = "") -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
    )
    page = context.new_page()
    page.goto(page_file.resolve().as_uri())
    page.wait_for_selector("#items .item")
    if script:
        page.evaluate(script)
    Image.open(io.BytesIO(page.screenshot())).save(HERE / name, quality=82, method=6)
    context.close()


def main(run: str) -> None:
    file = Path(run) / "report.html"
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu"],
        )
        take(browser, file, "report.webp", 1200, 1400, "light")
        take(browser, file, "report-phone.webp", 390, 844, "dark", TO_AN_ANSWER)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
