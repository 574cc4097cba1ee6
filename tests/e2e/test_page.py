"""The page in a real browser (headless Chromium), against a coordinator and its ranks.

GLMD_SCREENSHOTS=DIR keeps pictures; those under docs/ were made that way.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

from conftest import DEADLINE_S, SOURCE

webdriver = pytest.importorskip("selenium.webdriver", reason="python3-selenium is not installed")
from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not DRIVER, reason="chromium-driver is not installed")
DEMO = SOURCE / "deploy/demo/model"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--force-prefers-reduced-motion"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    driver.set_script_timeout(DEADLINE_S)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(module_cluster):
    return module_cluster("page", DEMO, 2, worker__activations="fp16")


class Page:
    def __init__(self, driver, server):
        self.driver = driver
        driver.set_window_size(1300, 1000)
        driver.get_log("browser")  # of the page before
        driver.get(f"http://127.0.0.1:{server.http_port}/")
        driver.execute_script("localStorage.clear(); sessionStorage.clear();")
        driver.refresh()
        self.wait(lambda: self.text("health") == "serving", "a serving badge")

    def find(self, name):
        return self.driver.find_element(By.ID, name)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, name):
        return self.find(name).text

    def wait(self, condition, what):
        waiter = WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.05,
                               ignored_exceptions=[StaleElementReferenceException])
        return waiter.until(lambda _: condition(), what)

    def read(self, look):
        """What look() finds; once more if the live picture was drawn again meanwhile."""
        return self.wait(lambda: (look(),), "a picture that stays")[0]

    def click(self, name):
        self.find(name).click()

    def type(self, name, text):
        self.find(name).clear()
        self.find(name).send_keys(text)

    def open(self, name):
        self.driver.execute_script("document.getElementById(arguments[0]).open = true", name)

    def run(self):
        self.click("run")
        self.wait(lambda: "tokens/s" in self.text("progress"), "the end of the answer")

    def picture(self, name):
        folder = os.environ.get("GLMD_SCREENSHOTS")
        if folder:
            self.driver.save_screenshot(str(pathlib.Path(folder) / f"page-{name}.png"))

    def complaints(self):
        """What the browser's console has to say: errors, refused sources."""
        return [entry["message"] for entry in self.driver.get_log("browser")
                if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture
def page(browser, server):
    return Page(browser, server)


def test_it_loads_from_this_server_alone(page, server):
    asked = page.driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked and all(name.startswith(f"http://127.0.0.1:{server.http_port}/")
                         for name in asked), asked
    assert page.text("model") == "glm-demo, int4"
    assert page.complaints() == []


def test_the_fleet_is_shown(page, server):
    page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "two ranks")
    states = page.read(lambda: [e.text for e in page.all("tr[data-rank] .state")])
    assert states == ["ready", "ready"]
    assert len(page.all(".plot svg path")) == 5  # two, two and one lines
    assert f"of {server.status().groups[0].kv_blocks_total} KV blocks" in page.text("groups")
    finished = server.status().requests.finished
    page.wait(lambda: any(e.text.split()[0] == str(finished) and "requests finished" in e.text
                          for e in page.all(".tile")), f"{finished} requests finished")


def test_continue_streams_with_probabilities(page):
    page.type("prompt", "The history of the river begins")
    page.open("controls")
    page.type("f-max_tokens", "12")
    page.type("f-seed", "7")
    page.run()
    tokens = page.all("#answer .token")
    assert 1 <= len(tokens) <= 12
    # the pointer on a token shows how likely it was and what else could have stood there
    webdriver.ActionChains(page.driver).move_to_element(tokens[0]).perform()
    page.wait(lambda: page.find("tip").is_displayed(), "the tooltip")
    rows = [tuple(c.text for c in r.find_elements(By.TAG_NAME, "td")) for r in page.all("#tip tr")]
    assert len(rows) >= 5 and all(re.fullmatch(r"\d+\.\d %", p) for _, p in rows), rows
    percents = [float(p.split()[0]) for _, p in rows]
    assert percents == sorted(percents, reverse=True) and sum(percents) <= 100.5
    page.picture("continue")
    # and so does the keyboard
    tokens[0].send_keys(Keys.ESCAPE)
    assert not page.find("tip").is_displayed()
    page.driver.execute_script("arguments[0].blur(); arguments[0].focus()", tokens[0])
    assert page.find("tip").is_displayed()
    first = page.find("answer").get_attribute("textContent")
    page.run()
    assert page.find("answer").get_attribute("textContent") == first  # the same seed
    assert page.complaints() == []


def test_the_curl_command_does_the_same(page, server):
    page.type("prompt", "It's a river")
    page.open("controls")
    page.type("f-max_tokens", "6")
    page.type("f-seed", "11")
    page.run()
    command = page.find("curl").get_attribute("textContent")
    out = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True,
                         timeout=DEADLINE_S).stdout
    chunks = [json.loads(line[6:]) for line in out.splitlines()
              if line.startswith("data: ") and line != "data: [DONE]"]
    text = "".join(c["text"] for chunk in chunks for c in chunk["choices"])
    assert text == page.find("answer").get_attribute("textContent")


def test_blanks_light_up_as_they_are_filled(page):
    page.click("tab-fill")
    page.type("prompt", "The capital of France is [MASK], on the river [MASK].")
    # every blank that has been lit, seen from inside the page
    page.driver.execute_script("""
        window.lit = new Set();
        new MutationObserver((records) => records.forEach((r) => {
          if (r.oldValue === 'blank lit')
            window.lit.add([...document.querySelectorAll('.blank')].indexOf(r.target));
        })).observe(document.getElementById('answer'),
                    {subtree: true, attributes: true, attributeOldValue: true});""")
    page.run()
    blanks = [e.get_attribute("textContent") for e in page.all(".blank")]
    assert len(blanks) == 2 and all(blanks), blanks
    whole = page.find("answer").get_attribute("textContent")
    assert whole == f"The capital of France is {blanks[0]}, on the river {blanks[1]}."
    assert page.driver.execute_script("return [...window.lit].sort()") == [0, 1]
    assert page.all(".blank.lit") == []
    page.picture("fill")


def begin_a_long_answer(page):
    page.type("prompt", "The history of the river begins")
    page.open("controls")
    page.type("f-max_tokens", "2000")
    page.type("f-temperature", "0")  # goes round in circles
    page.click("run")
    page.wait(lambda: len(page.all("#answer .token")) > 3, "some tokens")


def test_another_tab_ends_the_answer(page, server):
    before = server.status().requests.cancelled
    begin_a_long_answer(page)
    page.click("tab-fill")
    page.wait(lambda: page.find("run").is_enabled(), "the end of the answer")
    server.wait(lambda: server.status().requests.cancelled == before + 1, "the request's end")
    assert page.find("prompt").get_attribute("value").count("[MASK]") == 2
    assert page.find("answer").get_attribute("textContent") == ""
    server.wait(lambda: server.status().groups[0].running == 0, "free ranks")


# What a hostile model, client or host could put into answers: markup, quotes, no place to break.
HOSTILE = r"""
const bad = '<img src=x onerror="window.hit=1"><script>window.hit=1</' + 'script>"\'&' + 'W'.repeat(400);
const spoil = (v) => typeof v === 'string' ? v + bad
  : Array.isArray(v) ? v.map(spoil)
  : v && typeof v === 'object' ? Object.fromEntries(Object.entries(v).map(([k, x]) => [k, spoil(x)])) : v;
const events = (...list) => new Response(
  list.map((x) => `data: ${JSON.stringify(x)}\n\n`).join('') + 'data: [DONE]\n\n',
  {headers: {'Content-Type': 'text/event-stream'}});
const usage = {completion_tokens: 1};
const answers = {
  '/v1/completions': () => events({choices: [{text: bad, logprobs: {tokens: [bad], token_logprobs: [-0.1],
    top_logprobs: [{[bad]: -0.1, b: -3}]}}], usage}),
  '/v1/chat/completions': () => events({choices: [{delta: {content: bad}}], usage}),
  '/v1/fill': () => events({blanks: [{index: 0, text: bad, finish_reason: 'stop'}], usage}),
};
const real = window.fetch.bind(window);
window.refused = false;
window.fetch = async (path, options) => {
  if (path === '/status')
    return Response.json(spoil(await (await real(path, options)).json()));
  return window.refused ? Response.json({error: {message: bad}}, {status: 400}) : answers[path]();
};
"""


def check_harmless(page):
    assert page.driver.execute_script("return window.hit") is None
    assert page.driver.execute_script("return [document.images.length, document.scripts.length]") == [1, 1]


def test_markup_in_answers_is_text(page):
    page.driver.set_window_size(500, 900)
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True})
    try:
        page.driver.execute_script(HOSTILE)
        page.wait(lambda: "<img" in page.text("groups") and "<img" in page.text("model"), "such a state")
        page.open("curl-box")
        for tab in ("continue", "fill", "chat"):
            page.click(f"tab-{tab}")
            page.type("prompt", "<img src=x onerror='window.hit=1'> [MASK]")
            page.run()
            assert "<img src=x onerror=" in page.find("answer").get_attribute("textContent"), tab
            check_harmless(page)
        page.click("tab-continue")
        page.run()
        page.driver.execute_script("document.querySelector('#answer .token').focus()")
        assert "<img" in page.text("tip")
        box = page.driver.execute_script(
            "const b = document.getElementById('tip').getBoundingClientRect();"
            "return [b.left, b.top, innerWidth - b.right, innerHeight - b.bottom]")
        assert min(box) >= 0, f"the tooltip sticks out: {box}"
        page.driver.execute_script("window.refused = true")
        page.type("prompt", "a")
        page.click("run")
        page.wait(lambda: "<img" in page.text("error"), "the error")
        check_harmless(page)
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360, width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.refresh()


def test_a_strange_answer_does_not_end_the_picture(page):
    page.driver.execute_script("""
        const real = window.fetch.bind(window);
        window.n = 0;
        window.fetch = async (path, options) =>
          ++window.n > 2 ? real(path, options) : Response.json({groups: [{state: 'constructor'}]});
        document.getElementById('tiles').replaceChildren();""")
    page.wait(lambda: page.driver.execute_script("return window.n") > 2, "the next question")
    page.wait(lambda: page.all(".tile"), "the picture")


def test_both_languages_have_every_word():
    text = (SOURCE / "coordinator/page/i18n.js").read_text()
    words = {name: set(re.findall(r"(?:^|, |\{ ?|\n +)(\w+): '", block))
             for name, block in re.findall(r"^  (en|zh): \{(.*?)^  \},", text, re.M | re.S)}
    assert words["en"] == words["zh"] and len(words["en"]) > 60
    sources = {p.name: p.read_text() for p in (SOURCE / "coordinator/page").iterdir()}
    asked = {w for s in sources.values()
             for w in re.findall(r"""\bt\('(\w+)'|data-t="(\w+)"|'data-t': '(\w+)'""", s) for w in w if w}
    assert len(asked) > 30 and asked <= words["en"], asked - words["en"]


def test_masks_are_inserted_at_the_cursor(page):
    page.click("tab-fill")
    page.find("prompt").clear()
    page.find("prompt").send_keys("a river")
    page.driver.execute_script("document.getElementById('prompt').setSelectionRange(2, 2)")
    page.all("#blanks button")[0].click()
    assert page.find("prompt").get_attribute("value") == "a [MASK]river"


def test_chat_keeps_the_conversation(page):
    page.click("tab-chat")
    page.open("controls")
    page.type("f-max_tokens", "8")
    for message in ("Where is the river?", "And the city?"):
        page.type("prompt", message)
        page.run()
    turns = [e.text for e in page.all(".turn")]
    assert [t.split("\n")[0] for t in turns] == ["You", "Model", "You", "Model"]
    assert "And the city?" in turns[2]
    page.click("clear")
    assert page.all(".turn") == []


def test_stop_cancels_within_the_server(page, server):
    before = server.status().requests.cancelled
    begin_a_long_answer(page)
    page.click("stop")
    page.wait(lambda: page.text("progress") == "stopped", "the word that it stopped")
    server.wait(lambda: server.status().requests.cancelled == before + 1, "the request's end")
    server.wait(lambda: server.status().groups[0].running == 0, "free ranks")
    assert page.find("run").is_enabled() and not page.find("stop").is_enabled()


def test_leaving_the_page_cancels(page, server):
    before = server.status().requests.cancelled
    begin_a_long_answer(page)
    page.driver.get("about:blank")
    server.wait(lambda: server.status().requests.cancelled == before + 1, "the request's end")


def test_errors_are_shown(page):
    page.open("controls")
    page.type("f-max_tokens", "4000")  # more than the context
    page.click("run")
    page.wait(lambda: page.find("error").is_displayed(), "the error")
    assert page.text("error").startswith("400 ")


def test_language_and_theme_are_kept(page):
    Select(page.find("language")).select_by_value("zh")
    Select(page.find("theme")).select_by_value("dark")
    assert page.find("run").text == "运行"
    page.driver.refresh()
    page.wait(lambda: page.text("health") == "服务中", "the badge in Chinese")
    assert page.driver.execute_script("return document.documentElement.lang") == "zh-CN"
    assert page.driver.execute_script(
        "return getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"
    page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "the ranks")
    untranslated = page.driver.execute_script("""
        return [...document.querySelectorAll('[data-t]')].filter(e => !e.textContent).length""")
    assert untranslated == 0
    page.picture("dark-zh")


def test_a_phone_shows_everything(page):
    page.driver.set_window_size(500, 900)  # the narrowest window that Chromium makes
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True})
    try:
        page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "the ranks")
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert width <= 360, width
        page.picture("phone")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => {
  const [r, g, b] = rgb(c).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor, v = rgb(c);
    if (v.length === 3 || v[3] > 0.99) return c;
  }
  return 'rgb(255, 255, 255)';
};
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.disabled || e.closest('svg, noscript')) continue;
  const style = getComputedStyle(e);
  const a = light(style.color), b = light(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${e.tagName}#${e.id}.${e.className} ${ratio.toFixed(2)}`);
}
return found;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(page, theme):
    """WCAG AA: 4.5 to 1 for every text that is shown."""
    Select(page.find("theme")).select_by_value(theme)
    page.open("controls")
    page.open("curl-box")
    page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "the ranks")
    assert page.driver.execute_script(CONTRAST) == []
    # and what comes with answers: tokens and what else they could have been, blanks, turns, errors
    page.type("f-max_tokens", "6")
    page.run()
    page.driver.execute_script("document.querySelector('#answer .token').focus()")
    assert page.find("tip").is_displayed() and page.driver.execute_script(CONTRAST) == []
    page.click("tab-fill")
    page.run()
    page.driver.execute_script("document.querySelector('.blank').classList.add('lit')")
    assert page.driver.execute_script(CONTRAST) == []
    page.click("tab-chat")
    page.type("prompt", "Where is the river?")
    page.run()
    page.type("f-max_tokens", "4000")
    page.type("prompt", "And?")
    page.click("run")
    page.wait(lambda: page.find("error").is_displayed(), "the error")
    assert page.all(".turn") and page.driver.execute_script(CONTRAST) == []


def test_names_for_those_who_do_not_see_it(page):
    page.open("controls")
    page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "the ranks")
    nameless = page.read(lambda: [
        e.get_attribute("outerHTML")[:80] for e in page.all("input, select, textarea, button")
        if e.is_displayed() and not e.accessible_name])
    assert nameless == []
    labels = page.read(lambda: [e.get_attribute("aria-label") for e in page.all(".plot svg")])
    assert labels and all(labels)


def test_the_keyboard_reaches_everything(page):
    page.open("controls")
    page.open("curl-box")
    page.wait(lambda: len(page.all("tr[data-rank]")) == 2, "the ranks")
    wanted = set(page.driver.execute_script("""
        const all = [...document.querySelectorAll('input, select, textarea, button, a, summary, pre, .scroll')]
          .filter(e => e.checkVisibility() && !e.disabled && !(e.role === 'tab' && e.tabIndex < 0));
        all.forEach((e, i) => { e.dataset.n = i; });
        return all.map(e => e.dataset.n);"""))
    seen = set()
    page.driver.execute_script("document.activeElement.blur()")
    for _ in range(2 * len(wanted)):
        webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
        at = page.driver.switch_to.active_element
        seen.add(at.get_attribute("data-n"))
        style = page.driver.execute_script(
            "return getComputedStyle(arguments[0]).outlineStyle", at)
        assert at.tag_name == "body" or style == "solid", f"{at.get_attribute('outerHTML')[:80]}: no outline"
    assert wanted <= seen, [page.all(f"[data-n='{n}']")[0].get_attribute("outerHTML")[:80]
                            for n in wanted - seen]


def test_the_keyboard_is_enough(page):
    tab = page.find("tab-continue")
    tab.send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element.get_attribute("id") == "tab-fill"
    assert page.find("tab-fill").get_attribute("aria-selected") == "true"
    page.find("prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: "tokens/s" in page.text("progress"), "the answer")


def test_a_rank_that_dies_is_seen(browser, cluster):
    c = cluster(DEMO, 2, workers="external", expect={"worker1": -signal.SIGKILL},
                worker__activations="fp16")
    page = Page(browser, c)
    page.wait(lambda: [e.text for e in page.all("tr[data-rank] .state")] == ["ready", "ready"],
              "two ready ranks")
    c.processes["worker1"].kill()
    page.wait(lambda: page.text("health") == "waiting for ranks", "the badge to change")
    page.wait(lambda: page.all("tr[data-rank='1'] .state")[0].text in ("failed", "absent"),
              "the rank's state")
    page.picture("rank-lost")
    c.start_worker(1, name="worker1-again")
    page.wait(lambda: page.text("health") == "serving", "the badge to come back")


def test_a_server_with_keys_asks_for_one(browser, cluster, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"user sha256:{hashlib.sha256(b'secret').hexdigest()}\n")
    keys.chmod(0o640)
    c = cluster(DEMO, 1, ready=False, coordinator__keys=keys, worker__activations="fp16")
    c.wait(lambda: "ready:" in c.logs(), "a ready group", "coordinator")
    browser.get(f"http://127.0.0.1:{c.http_port}/")
    page = Page.__new__(Page)
    page.driver = browser
    page.wait(lambda: "API key" in page.text("fleet-error"), "the word about the key")
    page.type("key", "secret")
    page.wait(lambda: page.text("health") == "serving", "the badge")
    page.open("controls")
    page.type("f-max_tokens", "4")
    page.type("prompt", "a river")
    page.run()
    assert "secret" not in page.find("curl").get_attribute("textContent")
