#!/usr/bin/python3
"""Gather the text the demo model is trained on, from freely licensed Debian packages.

    corpus.py fetch ROOT          download the packages and unpack them under ROOT
    corpus.py build ROOT OUT.json read them and write the corpus

The corpus is one JSON object:
    documents  [{lang, source, name, text, held_out}]   running text, one chapter, poem or page each
    tasks      [{lang, source, prompt, answer}]         instruction samples made from training text

The first four sources (kjv, austen, fortunes, classics) come first and in a fixed order, so that
the held-out set, every 40th document (index % 40 == 7), stays the same whatever is added after
them. Each later source holds out every 40th of its own documents. Short training documents that
share long phrases with held-out text are dropped. Nothing here depends on chance or on the clock.

What is left out on purpose: man pages and reference tables (no pleasure to read), other Bible
translations and commentaries (they would give the held-out verses away).
"""

from __future__ import annotations

import argparse
import csv
import gettext
import html.parser
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Iterable, Iterator

CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()
# Unpacked only. bible-kjv (its `bible` command) and r-cran-janeaustenr (through Rscript) are run,
# and must be installed.
PACKAGES = [
    "fortunes",
    "fortunes-min",
    "fortunes-zh",
    "libreoffice-help-en-us",
    "libreoffice-help-zh-cn",
    "gnome-user-docs",
    "debian-reference-en",
    "debian-reference-zh-cn",
    "debian-edu-doc-zh-cn",
    "debian-handbook",
    "installation-guide-amd64",
    "wesnoth-1.16-data",
] + ["wesnoth-1.16-" + name for name in CAMPAIGNS]

# The categories of the first corpus, in its order; the held-out set depends on it.
FORTUNES = (
    """literature wisdom science songs-poems education work platitudes tao goedel riddles food
    art kids pets people humorists miscellaneous fortunes medicine law computers linux""".split()
)
MORE_FORTUNES = "cookie definitions love linuxcookie debian magic disclaimer".split()
CLASSICS = ["chinese", "tang300", "song100"]

HOLD_EVERY, HOLD_AT = 40, 7
HAN = re.compile(r"[\u3400-\u9fff]")
CJK_GAP = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) +(?=[\u3000-\u9fff\uff00-\uffef])")
GAME = "usr/share/games/wesnoth/1.16"


def squeeze(text: str) -> str:
    """Collapse white space."""
    return re.sub(r"\s+", " ", text).strip()


def join_chinese(text: str) -> str:
    """Collapse white space and drop it between Chinese characters (line breaks of the source)."""
    return CJK_GAP.sub("", squeeze(text.replace("\u3000", " ")))


def document(lang: str, source: str, name: str, text: str) -> dict:
    """One corpus entry; the split is decided later."""
    return {"lang": lang, "source": source, "name": name, "text": text}


def is_prose(text: str, lang: str) -> bool:
    """A paragraph of running text: long enough, mostly letters, ended like a sentence."""
    if lang == "zh":
        return (
            len(text) >= 14
            and len(HAN.findall(text)) > 0.62 * len(text)
            and text[-1] in "。！？”…：）"
        )
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) >= 40 and letters > 0.9 * len(text) and text[-1] in ".!?\"'"


# ---- the first four sources ----------------------------------------------------------------------


def read_bible() -> Iterator[dict]:
    """The King James Bible, one document a chapter; verse numbers dropped."""
    command = ["bible", "-f", "Gen1:1-Rev22:21"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    chapters: OrderedDict[tuple[str, int], list[str]] = OrderedDict()
    for line in text.splitlines():
        verse = re.match(r"^([1-3]?[A-Za-z]+)(\d+):\d+ (.*)$", line)
        if verse:
            chapters.setdefault((verse[1], int(verse[2])), []).append(verse[3].strip())
    for (book, number), verses in chapters.items():
        yield document("en", "kjv", f"{book} {number}", " ".join(verses)) | {"verses": verses}


def read_austen() -> Iterator[dict]:
    """Jane Austen's six novels, one document a chapter."""
    program = "library(janeaustenr); write.csv(austen_books(), row.names = FALSE)"
    command = ["Rscript", "-e", program]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heading = re.compile(r"^(CHAPTER|Chapter|VOLUME|FINIS)\b")
    book: str | None = None
    lines: list[str] = []

    def finish() -> Iterator[dict]:
        text = squeeze(" ".join(lines)).replace("_", "")
        if len(text) > 400:
            yield document("en", "austen", book or "", text)
        lines.clear()

    rows = csv.reader(io.StringIO(table))
    next(rows)
    for line, title in rows:
        if title != book or heading.match(line):
            yield from finish()
            book = title
        else:
            lines.append(line)
    yield from finish()


def fortune_entries(root: Path, name: str) -> list[str]:
    """The entries of one fortune file, terminal colours removed."""
    raw = (root / "usr/share/games/fortunes" / name).read_text(encoding="utf8", errors="ignore")
    raw = re.sub(r"\x1b\[[0-9;]*m", "", raw)
    return [entry.strip() for entry in re.split(r"\n%\s*(?:\n|$)", raw) if entry.strip()]


def read_fortunes(root: Path, names: Iterable[str], source: str) -> Iterator[dict]:
    """English fortunes: aphorisms, jokes, quotations."""
    for name in names:
        for entry in fortune_entries(root, name):
            text = squeeze(entry)
            letters = sum(c.isalpha() or c == " " for c in text)
            if 40 < len(text) < 2000 and letters > 0.85 * len(text):
                yield document("en", source, name, text)


def read_classics(root: Path) -> Iterator[dict]:
    """Chinese classics, proverbs and poems."""
    modern = re.compile(r"[A-Za-z]{3}|[│┌└]|毛泽东|毛主席|Debian")
    gap = re.compile(r"(?<=[\u3000-\u9fff，。；：？！]) (?=[\u3000-\u9fff])")
    for name in CLASSICS:
        for entry in fortune_entries(root, name):
            text = squeeze(entry.replace("\u3000", " "))
            han = len(re.findall(r"[\u4e00-\u9fff]", text))
            if han > 8 and han > 0.6 * len(text.replace(" ", "")) and not modern.search(text):
                yield document("zh", "classics", "", gap.sub("", text))


# ---- the sources added later ---------------------------------------------------------------------


class Paragraphs(html.parser.HTMLParser):
    """The paragraphs of a page, without tables, listings, menus and scripts."""

    SKIP = {"pre", "table", "script", "style", "nav", "header", "aside", "footer", "title"}

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.depth = 0
        self.parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in self.SKIP:
            self.depth += 1
        elif not self.depth and self.starts_paragraph(tag, dict(attrs).get("class") or ""):
            self.parts = []

    @staticmethod
    def starts_paragraph(tag: str, kind: str) -> bool:
        """<p>, unless it is a listing, or the <div class="para"> of Publican books."""
        return (tag == "p" and "code" not in kind) or (tag == "div" and kind == "para")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIP:
            self.depth = max(0, self.depth - 1)
        elif tag in ("p", "div") and self.parts is not None:
            self.found.append(squeeze("".join(self.parts)))
            self.parts = None

    def handle_data(self, data: str) -> None:
        if self.parts is not None and not self.depth:
            self.parts.append(data)


def html_paragraphs(path: Path) -> list[str]:
    """The paragraphs of an HTML page."""
    parser = Paragraphs()
    parser.feed(path.read_text(encoding="utf8", errors="ignore"))
    return parser.found


def mallard_paragraphs(path: Path) -> list[str]:
    """The paragraphs of a GNOME help page (Mallard XML)."""
    tree = ElementTree.parse(path)
    nodes = tree.iter("{http://projectmallard.org/1.0/}p")
    return [squeeze("".join(node.itertext())) for node in nodes]


def prose_documents(
    source: str, lang: str, pages: Iterable[tuple[str, list[str]]]
) -> Iterator[dict]:
    """Join the prose paragraphs of each page; a paragraph seen before is not repeated."""
    seen: set[str] = set()
    for name, paragraphs in pages:
        kept = []
        for paragraph in paragraphs:
            text = join_chinese(paragraph) if lang == "zh" else paragraph
            if text and text not in seen and is_prose(text, lang):
                seen.add(text)
                kept.append(text)
        text = ("" if lang == "zh" else " ").join(kept)
        if len(text) >= (40 if lang == "zh" else 120):
            yield document(lang, source, name, text)


def read_pages(root: Path, source: str, patterns: dict[str, str]) -> Iterator[dict]:
    """Documentation: one document a page, English and Chinese by the pattern of each."""
    for lang, pattern in patterns.items():
        read = mallard_paragraphs if pattern.endswith(".page") else html_paragraphs
        pages = ((path.stem, read(path)) for path in sorted(root.glob(pattern)))
        yield from prose_documents(source, lang, pages)


def game_strings(path: Path) -> Iterator[tuple[str, str]]:
    """(text domain, message) of every translatable string of a Wesnoth .cfg file, in order."""
    domain = "wesnoth"
    text = path.read_text(encoding="utf8", errors="ignore")
    for match in re.finditer(r'#textdomain (\S+)|\b_ *"((?:[^"]|"")*)"', text):
        if match[1]:
            domain = match[1]
        else:
            yield domain, match[2].replace('""', '"')


def game_clean(text: str, lang: str) -> str:
    """A game message as plain text; empty when it depends on variables."""
    if "$" in text or "{" in text:
        return ""
    text = re.sub(r"<[^<>]*>|~", "", text.rsplit("^", 1)[-1]).replace("*", "")
    text = text.replace("—", " - ") if lang == "en" else text
    return join_chinese(text) if lang == "zh" else squeeze(text)


def read_game(root: Path) -> tuple[list[dict], list[tuple[str, str]]]:
    """The stories told by the campaigns of The Battle for Wesnoth, one document a scenario, in
    English and Chinese, and pairs of short strings (English, Chinese)."""
    locale = root / GAME / "locale"
    catalogues: dict[str, gettext.NullTranslations] = {}
    pages: dict[str, list[tuple[str, list[str]]]] = {"en": [], "zh": []}
    pairs: OrderedDict[str, str] = OrderedDict()
    for path in sorted((root / GAME / "data").rglob("*.cfg")):
        english, chinese = [], []
        for domain, message in game_strings(path):
            if domain not in catalogues:
                catalogues[domain] = gettext.translation(
                    domain, str(locale), ["zh_CN"], fallback=True
                )
            en = game_clean(message, "en")
            zh = game_clean(catalogues[domain].gettext(message), "zh")
            english.append(en)
            if HAN.search(zh):
                chinese.append(zh)
                if 4 <= len(en) <= 60 and 2 <= len(zh) <= 24 and re.fullmatch(r"[\w ,.!?'-]+", en):
                    pairs.setdefault(en, zh)
        pages["en"].append((path.stem, english))
        pages["zh"].append((path.stem, chinese))
    documents = [d for lang in pages for d in prose_documents("wesnoth", lang, pages[lang])]
    return documents, list(pairs.items())


# ---- held-out text -------------------------------------------------------------------------------


def phrases(text: str, lang: str) -> set[str]:
    """The 8-word (English) or 7-character (Chinese) phrases of a text, punctuation aside."""
    if lang == "zh":
        units, n = HAN.findall(text), 7
    else:
        units, n = re.findall(r"[a-z']+", text.lower()), 8
    return {" ".join(units[i : i + n]) for i in range(len(units) - n + 1)}


def split_held_out(documents: list[dict]) -> list[dict]:
    """Mark the held-out documents and drop training documents that mostly repeat them."""
    groups: dict[str, list[dict]] = {}
    for entry in documents:
        first = entry["source"] in ("kjv", "austen", "fortunes", "classics")
        groups.setdefault("first" if first else entry["source"] + entry["lang"], []).append(entry)
    for group in groups.values():
        for index, entry in enumerate(group):
            entry["held_out"] = index % HOLD_EVERY == HOLD_AT

    held = Counter()
    for entry in documents:
        if entry["held_out"]:
            held.update(phrases(entry["text"], entry["lang"]))

    def repeats(entry: dict) -> bool:
        own = phrases(entry["text"], entry["lang"])
        return bool(own) and sum(p in held for p in own) > 0.2 * len(own)

    return [entry for entry in documents if entry["held_out"] or not repeats(entry)]


# ---- instruction samples -------------------------------------------------------------------------


def task(lang: str, source: str, prompt: str, answer: str) -> dict:
    """One instruction sample; the model sees prompt + [gMASK] and writes the answer."""
    return {"lang": lang, "source": source, "prompt": prompt, "answer": answer}


def bible_tasks(entry: dict) -> Iterator[dict]:
    """Which book is it, and how does it go on."""
    book = re.sub(r"^([1-3])", r"\1 ", entry["name"].split()[0])
    verses = entry["verses"]
    for i in range(0, len(verses) - 1, 5):
        if len(verses[i]) < 200 and len(verses[i + 1]) < 200:
            prompt = f"Verse: {verses[i]} Question: What is the next verse? Answer:"
            yield task("en", "kjv", prompt, verses[i + 1])
        if len(verses[i]) < 200 and i % 10 == 0:
            prompt = f"Verse: {verses[i]} Question: Which book of the Bible is this from? Answer:"
            yield task("en", "kjv", prompt, f"{book}.")


def austen_tasks(entry: dict) -> Iterator[dict]:
    """Which novel is it."""
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", entry["text"])
    for sentence in sentences[::12]:
        if 60 < len(sentence) < 260:
            prompt = f"{sentence} Question: Which novel by Jane Austen is this from? Answer:"
            yield task("en", "austen", prompt, f"{entry['name']}.")


def fortune_tasks(entry: dict) -> Iterator[dict]:
    """Who said it."""
    quoted = re.match(r"^(.{30,300}?) -- ([A-Z][A-Za-z. ]{4,40})$", entry["text"])
    if quoted:
        yield task(
            "en", "fortunes", f"{quoted[1]} Question: Who said this? Answer:", f"{quoted[2]}."
        )


def classics_tasks(entry: dict) -> Iterator[dict]:
    """The next line, the work a saying is from, the poet."""
    text = entry["text"]
    saying = re.match(r"^(.{6,80}?) ?-- ?(.{0,8}《.+》.{0,6})$", text)
    body = saying[1] if saying else re.sub(r"^《[^》]*》(作者：[^，。]{0,3})?", "", text)
    if saying:
        yield task("zh", "classics", f"“{saying[1]}”问：这句话出自哪里？答：", saying[2])
    lines = re.findall(r"[^，。；？！]{3,12}[，。；？！]", body)
    for first, second in list(zip(lines[::2], lines[1::2]))[:6]:
        if HAN.search(first) and HAN.search(second):
            yield task("zh", "classics", f"问：“{first[:-1]}”的下一句是什么？答：", second)


def make_tasks(documents: list[dict], pairs: list[tuple[str, str]]) -> list[dict]:
    """The multi-task share, from training documents and translated strings only."""
    makers = {
        "kjv": bible_tasks,
        "austen": austen_tasks,
        "fortunes": fortune_tasks,
        "classics": classics_tasks,
    }
    tasks = []
    for entry in documents:
        if not entry["held_out"] and entry["source"] in makers:
            tasks.extend(makers[entry["source"]](entry))
    for index, (en, zh) in enumerate(pairs):
        if index % HOLD_EVERY != HOLD_AT:
            tasks.append(task("zh", "wesnoth", f"Translate into Chinese: {en} Answer:", zh))
            tasks.append(task("en", "wesnoth", f"翻译成英文：{zh} 答：", en))
    return tasks


# ---- commands ------------------------------------------------------------------------------------


def fetch(root: Path) -> None:
    """Download the packages with apt and unpack them; nothing is installed."""
    archives = root / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        print("fetching", name, flush=True)
        subprocess.run(["apt-get", "download", "-qq", name], cwd=archives, check=True)
    for archive in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)


def build(root: Path, out: Path) -> None:
    """Read every source and write the corpus."""
    documents = list(read_bible()) + list(read_austen())
    documents += read_fortunes(root, FORTUNES, "fortunes")
    documents += read_classics(root)
    documents += read_fortunes(root, MORE_FORTUNES, "more-fortunes")
    game, pairs = read_game(root)
    documents += game
    office = "usr/share/libreoffice/help/{}/text/**/*.html"
    documents += read_pages(
        root, "libreoffice", {"en": office.format("en-US"), "zh": office.format("zh-CN")}
    )
    gnome = "usr/share/help/{}/gnome-help/*.page"
    documents += read_pages(root, "gnome", {"en": gnome.format("C"), "zh": gnome.format("zh_CN")})
    reference = "usr/share/debian-reference/*.{}.html"
    documents += read_pages(
        root, "debian", {"en": reference.format("en"), "zh": reference.format("zh-cn")}
    )
    handbook = "usr/share/doc/debian-handbook/html/{}/*.html"
    documents += read_pages(
        root, "handbook", {"en": handbook.format("en-US"), "zh": handbook.format("zh-CN")}
    )
    guide = "usr/share/doc/installation-guide-amd64/{}/*.html"
    documents += read_pages(
        root, "installation", {"en": guide.format("en"), "zh": guide.format("zh_CN")}
    )
    edu = "usr/share/doc/debian-edu-doc-zh-cn/debian-edu-bookworm-manual.html"
    documents += read_pages(root, "debian-edu", {"zh": edu})

    unique: dict[str, dict] = {}
    for entry in documents:
        unique.setdefault(entry["text"], entry)
    kept = split_held_out(list(unique.values()))
    tasks = make_tasks(kept, pairs)
    for entry in kept:
        entry.pop("verses", None)
    out.write_text(json.dumps({"documents": kept, "tasks": tasks}, ensure_ascii=False), "utf8")
    report(kept, tasks)


def report(documents: list[dict], tasks: list[dict]) -> None:
    """Print what was gathered."""
    count: Counter = Counter()
    size: Counter = Counter()
    held: Counter = Counter()
    for entry in documents:
        key = (entry["source"], entry["lang"])
        count[key] += 1
        size[key] += len(entry["text"])
        held[key] += entry["held_out"]
    for key in count:
        print(
            "%-14s %s %6d documents (%4d held out) %9d characters"
            % (*key, count[key], held[key], size[key])
        )
    print("tasks", dict(Counter((t["source"], t["lang"]) for t in tasks)))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fetch", help="download and unpack the packages")
    one.add_argument("root", type=Path)
    two = commands.add_parser("build", help="read the packages and write the corpus")
    two.add_argument("root", type=Path)
    two.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "fetch":
        fetch(args.root)
    else:
        build(args.root, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
