"""Open a page in headless Chromium, over its debugging pipe: no driver and no package in between.

    python -m tests.browser [PAGE] FOLDER

opens a page, or the report of a made-up study, writes a screenshot for each width and colour scheme and a PDF, and
fails on a message in the console, an exception, a request that leaves the page, or a page wider than its window.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.study_runs import make_config, run_path, write_failure, write_study
from tljax import cli

WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")


class Browser:
    """One tab of a Chromium that was started with a pipe."""

    def __init__(self, sending: int, receiving: int):
        self.sending, self.receiving = sending, receiving
        self.numbers, self.waiting, self.events = itertools.count(1), b"", []
        self.session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and keep the events that come before its answer."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def wait_for(self, event: str) -> None:
        while not any(found.get("method") == event for found in self.events):
            self.events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            part = os.read(self.receiving, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self.waiting += part
        message, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium with one empty tab.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        raise FileNotFoundError("no chromium on the path; on Debian: apt-get install chromium")
    ours, theirs = os.pipe(), os.pipe()

    def connect() -> None:
        # Chromium reads from descriptor 3 and writes to 4, which one of the pipes may have already.
        reading, writing = os.dup(ours[0]), os.dup(theirs[1])
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    with tempfile.TemporaryDirectory() as profile:
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        try:
            browser = Browser(ours[1], theirs[0])
            tab = browser.call("Target.createTarget", url="about:blank")["targetId"]
            browser.session = browser.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            yield browser
            browser.session = None
            browser.call("Browser.close")
            process.wait(timeout=30)
        finally:
            process.kill()
            process.wait()
            os.close(ours[1])
            os.close(theirs[0])


def visit(browser: Browser, page: Path, width: int, scheme: str) -> tuple[bytes, list[str]]:
    """Return a screenshot of the whole page, and what is wrong with it."""
    browser.events.clear()
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    address = page.resolve().as_uri()
    browser.call("Page.navigate", url=address)
    browser.wait_for("Page.loadEventFired")
    measured = browser.call("Runtime.evaluate", expression="document.documentElement.scrollWidth")["result"]["value"]
    problems = [f"{scheme}, {width} px: {text}" for text in problems_of(browser.events, address)]
    if measured > width:
        problems.append(f"{scheme}, {width} px: the page is {measured} px wide")
    height = browser.call("Runtime.evaluate", expression="document.documentElement.scrollHeight")["result"]["value"]
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
    picture = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
    return base64.b64decode(picture), problems


def problems_of(events: list[dict[str, Any]], address: str) -> list[str]:
    """List what was said in the console, thrown, or asked for beyond the page itself."""
    found = []
    for event in events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            found.append(f"console: {params['args']}")
        elif method == "Runtime.exceptionThrown":
            found.append(f"exception: {params['exceptionDetails']['text']}")
        elif method == "Log.entryAdded":
            found.append(f"log: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith((address, "data:")):
            found.append(f"request: {params['request']['url']}")
    return found


def check(page: Path, folder: Path) -> list[str]:
    """Visit a page at all widths and schemes; write the pictures and the PDF, and return the problems."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    with chromium() as browser:
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            picture, found = visit(browser, page, width, scheme)
            (folder / f"{page.stem}_{width}_{scheme}.png").write_bytes(picture)
            problems += found
        printed = browser.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        (folder / f"{page.stem}.pdf").write_bytes(base64.b64decode(printed))
    return problems


def write_page(folder: Path) -> Path:
    """Write the report of a made-up study, with a failed run, into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    levels = {"groups.freeze": "block_03", "schedule.learning_rate": 1e-3}
    study = write_study(folder / "study", baseline={"groups.freeze": "embed", "schedule.learning_rate": 1e-4})
    failed = run_path(study, levels, 4)
    shutil.rmtree(failed)
    write_failure(failed, make_config(levels, 4), "FloatingPointError: step 17: loss is nan\n" + "a long line " * 20)
    if cli.main(["report", str(study)]):
        raise RuntimeError("the report was not written")
    return study / "report" / "report.html"


def main(arguments: list[str]) -> int:
    """Check the page that is named, or that of a made-up study."""
    *named, folder = map(Path, arguments)
    page = named[0] if named else write_page(folder)
    problems = check(page, folder)
    print("\n".join(problems) or f"{page}: no errors, no requests, no overflow; pictures in {folder}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
