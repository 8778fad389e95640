"""Debian's chromium, headless, for tests of web pages."""

import contextlib
import os
import shutil
from unittest import mock

from selenium import webdriver

from support.processes import clean_environment

LOAD_SECONDS = 30
ARGUMENTS = (
    "--headless=new",
    # The sandbox needs user namespaces, which a container may not have.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-proxy-server",
    # No requests of its own.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--no-first-run",
)


@contextlib.contextmanager
def browser():
    """A browser with one window, and a new profile."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"there is no {missing[0]}; `tests/setup.sh examples` installs it"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in ARGUMENTS:
        options.add_argument(argument)
    service = webdriver.ChromeService(programs["chromedriver"])
    # selenium would reach its driver through a proxy of the environment.
    with mock.patch.dict(os.environ, clean_environment(), clear=True):
        driver = webdriver.Chrome(options, service)
        try:
            driver.set_page_load_timeout(LOAD_SECONDS)
            driver.set_script_timeout(LOAD_SECONDS)
            yield driver
        finally:
            driver.quit()


class Window:
    """One window of the browser. Selenium talks to one window at a time, so that every call says
    which one it means."""

    def __init__(self, driver, *, new=False):
        self.driver = driver
        if new:
            driver.switch_to.new_window("window")
        self.handle = driver.current_window_handle

    def run(self, script, *arguments):
        """The result of a script in the page."""
        self.driver.switch_to.window(self.handle)
        return self.driver.execute_script(script, *arguments)

    def command(self, name, **parameters):
        """A command of the Chrome DevTools Protocol."""
        self.driver.switch_to.window(self.handle)
        return self.driver.execute_cdp_cmd(name, parameters)

    def open(self, url):
        self.driver.switch_to.window(self.handle)
        self.driver.get(url)

    def cut_network(self):
        """The page reaches nobody any more."""
        self.command("Network.enable")
        nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.command("Network.emulateNetworkConditions", offline=True, **nothing)

    def size(self, width, height):
        """Sets the size of the page, at two pixels of the picture for each."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2,
            mobile=False,
        )

    def save(self, path):
        """Writes a picture of the page."""
        self.driver.switch_to.window(self.handle)
        self.driver.save_screenshot(str(path))

    def close(self):
        self.driver.switch_to.window(self.handle)
        self.driver.close()

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent.trim()", selector)
