"""The Swagger page in a real browser: it shows the service, and sends a request."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_request_is_sent_from_the_page(browser: Any, serve: Callable[..., Any]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str) -> Any:
        found = lambda driver: driver.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
        return WebDriverWait(browser, 30).until(found, f"{selector} is not on the page")[0]

    with serve(Path(__file__).with_name("server.py"), "alone") as service:
        browser.get(f"{service.url}/openapi/swagger")
        assert browser.current_url == f"{service.url}/openapi/swagger/"
        find("#operations-default-post_inference, .opblock-post .opblock-summary").click()
        find(".try-out__btn").click()
        body = find("textarea.body-param__text")
        body.clear()
        body.send_keys('{"text": "from a browser"}')
        find(".execute").click()
        status = find(".live-responses-table tbody .response-col_status")
        answer = find(".live-responses-table tbody .response-col_description")
        assert status.text.split()[0] == "200", answer.text
        assert "from a browser" in answer.text
