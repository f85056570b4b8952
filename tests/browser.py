"""A headless Chromium for tests of pages; they skip, with the reason, where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
let ground = arguments[0], colour;
do { colour = parse(getComputedStyle(ground).backgroundColor); ground = ground.parentElement; }
while (ground && colour.length === 4 && colour[3] === 0);
const pair = [light(colour), light(parse(getComputedStyle(arguments[0]).color))].sort((a, b) => b - a);
return (pair[0] + 0.05) / (pair[1] + 0.05);
"""


class Browser:
    """What the tests ask of a page: `check` fails for an error on the console and for a request that left the file."""

    def __init__(self, driver: Any) -> None:
        from selenium.webdriver.common.keys import Keys

        self.driver, self.keys = driver, Keys

    def open(self, path: Path) -> None:
        self.driver.get(path.absolute().as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_elements("css selector", selector)

    def look(self, width: int, dark: bool) -> None:
        """A window of this width, in the light or dark scheme."""
        how = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", how)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def contrast(self, element: Any) -> float:
        """Of an element's text to what is behind it (WCAG 2.2)."""
        return float(self.run(CONTRAST, element))

    def wait(self, holds: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.05)

    def check(self) -> None:
        assert self.driver.get_log("browser") == []
        assert (
            self.run(
                "return performance.getEntriesByType('resource').map((entry) => entry.name).filter((name) => !name.startsWith('data:'))"
            )
            == []
        )


@contextmanager
def open_browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[test]' brings it")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()
