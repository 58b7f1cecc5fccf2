"""A headless Chromium with the few moves that the tests and the benchmark of the page need."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")
PRESS = """
    (document.activeElement || document.body).dispatchEvent(new KeyboardEvent('keydown',
        {key: arguments[0], shiftKey: arguments[1], bubbles: true, cancelable: true}));
"""
PIXEL = """
    const [row, column, canvas] = arguments;
    const pen = document.querySelectorAll('canvas.mask')[canvas].getContext('2d');
    return [...pen.getImageData(column, row, 1, 1).data];
"""


class Browser:
    """One session, which lives until `close`."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
        for switch in (
            "headless=new",
            "no-sandbox",
            "no-first-run",
            *(f"disable-{part}" for part in quiet),
            f"user-data-dir={profile}",
            "window-size=1280,800",
        ):
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def open(self, page: Path | str, width: int = 1280, height: int = 800) -> None:
        """Load anew (never the page before it with another fragment) and wait until it stands still."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def state(self) -> dict[str, Any]:
        return dict(self.run("return unspool.state()"))

    def until(self, condition: str, seconds: float = 15) -> None:
        """Wait until a JavaScript expression over `s`, the state of the page, holds."""
        end = time.monotonic() + seconds
        while not self.run(f"const s = unspool.state(); return Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} never came: {self.state()}"
            time.sleep(0.02)

    def press(self, *keys: str, shift: bool = False) -> None:
        for key in keys:
            self.run(PRESS, key, shift)

    def pixel(self, row: int, column: int, canvas: int = 0) -> list[int]:
        """Red, green, blue and opacity on the canvas of objects."""
        return list(self.run(PIXEL, row, column, canvas))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def close(self) -> None:
        self.driver.quit()
