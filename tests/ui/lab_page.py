"""What the browser tests do in JupyterLab's page, in the words of who uses it."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import Locator, Page

THEMES = {
    "light": "JupyterLab Light",
    "dark": "JupyterLab Dark",
    "contrast": "JupyterLab Dark High Contrast",
}


def until(condition: Callable[[], object], what: str, timeout: float = 15.0) -> None:
    """Wait for what the page is asked."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


class LabPage:
    """A page with JupyterLab in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.panel = page.locator(".aios-Panel")

    def open(self, url: str) -> LabPage:
        """Load it, and wait until it has restored its layout."""
        self.page.goto(url)
        self.page.wait_for_function("window.jupyterapp !== undefined", timeout=60_000)
        self.page.evaluate("() => window.jupyterapp.restored.then(() => null)")
        return self

    def execute(self, command: str, **args: object) -> None:
        """Run a command of the application; does not wait for its end."""
        self.page.evaluate(
            "([command, args]) => void window.jupyterapp.commands.execute(command, args)",
            [command, args],
        )

    def show_panel(self) -> Locator:
        """Open the sidebar."""
        self.execute("aios:open")
        self.panel.wait_for()
        return self.panel

    def width(self, pixels: int) -> None:
        """Make the sidebar so wide, by its edge."""
        handle = self.page.locator("#jp-main-split-panel > .lm-SplitPanel-handle").first
        box = handle.bounding_box()
        left = self.panel.bounding_box()
        assert box and left
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 200)
        self.page.mouse.down()
        self.page.mouse.move(left["x"] + pixels, box["y"] + 200, steps=5)
        self.page.mouse.up()

    def theme(self, name: str) -> None:
        """Change the theme to a key of `THEMES`, and wait until it is there."""
        self.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
            THEMES[name],
        )
        shown = f"body[data-jp-theme-name='{THEMES[name]}']"
        self.page.wait_for_selector(shown, state="attached")
        self.page.wait_for_timeout(300)  # the style sheets are swapped after the attribute

    def device(self, identity: str) -> Locator:
        """A device's row."""
        return self.panel.locator(f"[data-device='{identity}']")

    def devices(self, state: str) -> Locator:
        """Rows of devices in a state: free, mine, held, outside, lost."""
        return self.panel.locator(f".aios-Device[data-state='{state}']")

    def section(self, name: str) -> Locator:
        """A section by its id."""
        return self.panel.locator(f"[data-section='{name}']")

    @property
    def status(self) -> Locator:
        """The item in the status bar."""
        return self.page.locator(".aios-Status")

    @property
    def indicator(self) -> Locator:
        """The item in the toolbar of the notebook in front."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .aios-Indicator-button")

    def choose(self, item: str) -> None:
        """Choose from the menu of that item."""
        self.indicator.click()
        self.page.locator(".lm-Menu").get_by_text(item).click()

    @property
    def details(self) -> Locator:
        """The page of a run, device, lease or model that is in front."""
        return self.page.locator(".aios-Details:visible")

    @property
    def dialog(self) -> Locator:
        """The dialog that is open."""
        return self.page.locator(".jp-Dialog")

    def accept(self) -> None:
        """Press the dialog's button that does it."""
        self.dialog.locator(".jp-mod-warn").click()
        self.dialog.wait_for(state="detached")
