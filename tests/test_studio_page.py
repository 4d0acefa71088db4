"""The page in a real browser: upload, train, stop, go on, sample, play, turn a dial, download; and what it refuses.

Needs requirements-app.txt, selenium, Chromium and its driver (apt-get install chromium chromium-driver); skips itself
where one of them is missing.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from conftest import ROOT

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-app.txt")
webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver here")
FLAGS = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
FLAGS += " disable-component-update disable-sync disable-dev-shm-usage window-size=1100,1400"
PATIENCE = 240  # seconds


def until(true, what, seconds=PATIENCE):
    """The first true value; elements that were just replaced are looked for again."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := true():
                return found
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what}: it did not happen")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def address(outputs):
    command = [sys.executable, "scripts/app.py", "--no-browser", "-o", str(outputs)]
    page = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = page.stdout.readline()
    assert "http://127.0.0.1:" in line
    yield line.split()[4]
    page.terminate()
    page.wait(PATIENCE)


class Tab:
    """A tab of a browser with the page open."""

    def __init__(self, address, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in [*FLAGS.split(), f"user-data-dir={folder / 'profile'}"]:
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        service = webdriver.chrome.service.Service(DRIVER)
        self.driver, self.folder = webdriver.Chrome(options=options, service=service), folder
        self.driver.get(address)
        until(lambda: self.all("seen", "video"), "the first clip is shown")

    def at(self, name):
        return self.driver.find_element("id", name)

    def all(self, name, tag):
        return self.at(name).find_elements("tag name", tag)

    def press(self, name):
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.at(name))
        self.at(name).click()

    def write(self, name, text):
        field = self.driver.find_element("css selector", f"#{name} textarea, #{name} input[type=number]")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys("\ue009a\ue000" + text + "\ue004")  # control and a, the text, tab

    def status(self):
        return self.at("status").text

    def refused(self, words):
        """The sentence that holds `words`, once it is on the page."""
        found = "[data-testid=toast-body], .toast-body"

        def look():
            texts = [each.text for each in self.driver.find_elements("css selector", found)]
            return next((text for text in texts if words in text), None)

        return until(look, f"the page says {words!r}", 60)


@pytest.fixture(scope="module")
def tab(address, tmp_path_factory):
    tab = Tab(address, tmp_path_factory.mktemp("browser"))
    yield tab
    tab.driver.quit()


def answer(url, host=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host} if host else {})) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_its_own_files_are_served(address, outputs, tab):
    (outputs / "page" / "link").symlink_to("/etc/passwd")
    for path in ("/etc/passwd", ROOT / "train.py", outputs / "page/../train", outputs / "page/link", "http://a.bc/x"):
        for route in ("gradio_api/file=", "gradio_api/file/", "file="):
            assert answer(f"{address}/{route}{path}") in (403, 404), path
    shown = next((outputs / "page" / "shown").glob("*.mp4"))
    assert answer(f"{address}/gradio_api/file={shown}") == 200
    assert answer(address, host="evil.example") == 400


def test_nothing_is_fetched_from_elsewhere(address, tab):
    messages = [json.loads(entry["message"])["message"] for entry in tab.driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    inside = (address, "data:", "blob:", "chrome")
    assert len(urls) > 10 and [url for url in urls if not url.startswith(inside)] == []


def test_bad_uploads_and_captions_are_one_sentence(tab, tmp_path, outputs):
    for name, words in (("notes.txt", "a .txt file where a video is needed"), ("clip.mp4", "cannot be decoded")):
        (tmp_path / name).write_text("no video")
        words = words.replace("cannot be", "not a video that can be")
        tab.driver.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / name))
        assert "Traceback" not in tab.refused(words)
    assert not any((outputs / "page" / "uploads").iterdir())
    tab.write("caption", "a <b>car</b>")
    tab.press("train")
    tab.refused("caption: found HTML")
    with open(tmp_path / "huge.mp4", "wb") as file:
        file.truncate(5_000_000_000)  # a hole: it takes no room on the disk
    tab.driver.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "huge.mp4"))
    until(lambda: "exceed" in tab.driver.find_element("tag name", "body").text.lower(), "5 GB are refused", 60)
    assert not any((outputs / "page" / "uploads").iterdir())


def test_the_whole_road(tab, address, outputs, tmp_path, tmp_path_factory):
    shutil.copy(ROOT / "data/examples/pocket_orbit.mp4", tmp_path / "my clip.mp4")
    tab.driver.refresh()
    until(lambda: tab.all("seen", "video"), "the page is there again")
    tab.driver.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "my clip.mp4"))
    until(lambda: "plan: my_clip" in tab.at("seen").text, "the upload's plan is shown")
    tab.write("caption", "a green circle moves right over a sky background")
    tab.at("more").find_element("tag name", "button").click()
    time.sleep(1)
    tab.write("steps", "20")
    until(lambda: "max_train_steps=20" in tab.all("command", "textarea")[0].get_attribute("value"), "the command")

    tab.press("train")
    until(lambda: "Training: step" in tab.status() and "step 0" not in tab.status(), "it trains")
    second = Tab(address, tmp_path_factory.mktemp("second"))
    until(lambda: "of 20" in second.status(), "a second tab sees the same run")
    second.driver.quit()
    tab.press("stop")
    until(lambda: "Go on continues" in tab.status(), "it stops with a checkpoint")
    tab.press("go_on")
    until(lambda: "Done: 20 steps" in tab.status(), "it goes on to the end")
    assert tab.all("curve", "svg") and len(tab.all("previews", "video")) >= 4
    assert len(list(outputs.glob("train/my_clip*/train_*"))) == 1

    tab.press("sample")
    until(lambda: len(tab.all("result", "video")) == 6, "it samples")
    tab.driver.execute_script("arguments[0].scrollIntoView()", tab.at("result"))
    first = until(lambda: tab.all("result", "video")[1].get_property("currentTime"), "the video plays")
    until(lambda: tab.all("result", "video")[1].get_property("currentTime") != first, "its time advances")
    assert "motion learned" in tab.at("result").text
    before = [video.get_attribute("src") for video in tab.all("result", "video")]

    tab.write("strength", "0.5")
    tab.press("sample")
    after = until(
        lambda: (
            (found := [v.get_attribute("src") for v in tab.all("result", "video")]) != before and found[5:] and found
        ),
        "a dial acts",
    )
    assert [before[n] == after[n] for n in range(6)] == [True, True, False] * 2  # reference, base, customized

    tab.press("prepare")
    link = until(lambda: tab.all("files", "a"), "the LoRA is ready")[0]
    tab.driver.execute_script("arguments[0].click()", link)
    until(lambda: list(tab.folder.glob("*ours*.zip")), "it is downloaded", 30)
    assert "python infer/infer.py" in tab.all("commands", "textarea")[0].get_attribute("value")
    assert tab.all("gallery", "video")
