import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.trainer_util import contents, noise, refused, tiny_config, write_images

from clsd_train.cell import train_cell
from clsd_train.cli import main
from clsd_train.compare import dump_study, record_path
from clsd_train.loop import Run
from clsd_train.page import Page
from clsd_train.study import load_study, make_cells, sets_of

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
VOID = {"meta", "img", "input", "br"}


class Reader(HTMLParser):
    """Elements, texts, and whether every element ends where it has to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny_config(tmp_path_factory.mktemp("run"), method="clsd")
    entries = Run(config).train()
    main(["report", str(config.output)])
    return config, entries, (config.output / "report.html").read_text()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's folder, its cells trained in this process."""
    folder = tmp_path_factory.mktemp("study")
    hr = write_images(folder / "hr", a=(40, 48))
    config = tiny_config(folder, iterations=2).model_dump(mode="json")
    (folder / "own.yaml").write_text(json.dumps({
        "title": "Plain & deep <supervision>", "baseline": "plain", "seeds": [0],
        "variants": {"plain": {"method": "baseline"}, "deep": {"method": "ds"}},
        "base": {k: config[k] for k in ("model", "heads", "data", "train")},
        "sets": {"noise": {"hr": [str(hr)]}},
    }))  # fmt: skip
    study = load_study(str(folder / "own.yaml"))
    output = folder / "out"
    for cell in make_cells(study, output):
        train_cell(cell.config, "auto", sets_of(study, 2), record_path(cell))
    (output / "study.yaml").write_text(dump_study(study))
    return output


def sources(reader):
    return [attributes["src"] for tag, attributes in reader.elements if tag == "img"]


def assert_alone(text, reader):
    """No element fetches anything."""
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    outside = re.sub(r'"data:[^"]*"', "", text)
    assert not re.search(r"https?:|//[\w.]+/|url\(|@import|fetch\(|XMLHttp", outside)
    for source in sources(reader):
        kind, content = re.fullmatch(r"data:([\w/+]+);base64,(.*)", source).groups()
        decoded = base64.b64decode(content, validate=True)
        if kind == "image/svg+xml":
            assert not re.search(rb'href="(?!#|data:)', decoded)


def image(source):
    content = base64.b64decode(source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_run_is_one_page_that_needs_no_other_file(run):
    config, entries, text = run
    reader = Reader(text)
    assert_alone(text, reader)
    words = " ".join(reader.texts)
    last = [entry for entry in entries if entry["kind"] == "val"][-1]
    assert f"{last['psnr']:.3f} dB, SSIM {last['ssim']:.4f}" in words
    assert config.to_yaml().splitlines()[0] in words
    assert "torch" in words and "Versions" in words
    pictures = [source for source in sources(reader) if "image/png" in source]
    assert len(pictures) == 2 * 3  # images by bicubic, SR and HR
    hr = image(pictures[2])
    assert any(
        (noise(*size, seed)[y:, x:][: hr.shape[0], : hr.shape[1]] == hr).all()
        for seed, size in enumerate([(40, 48), (36, 32)])
        for y in range(2)
        for x in range(17)
        if noise(*size, seed)[y:, x:][: hr.shape[0], : hr.shape[1]].shape == hr.shape
    )


def test_a_study_is_one_page(study, tmp_path):
    main(["report", str(study), "--output", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    reader = Reader(text)
    assert_alone(text, reader)
    words = " ".join(reader.texts)
    assert "Plain & deep <supervision>" in words
    for record in study.glob("cells/*.json"):
        assert f"{json.loads(record.read_text())['scores']['noise']['psnr']:.3f}" in words
    marks = re.findall(r"<button>(.*?)</button>", text)
    assert marks == ["bicubic", "plain", "deep", "HR"]


def test_a_page_shows_what_it_is_given():
    page = Page("<script>alert(1)</script>")
    page.paragraph("1 < 2 & 3")
    page.table([["a", "b"], ["<i>", "2"]])
    layers = {"first": noise(4, 6), "second": noise(4, 6, 1)}
    page.slider('"quoted"', layers)
    reader = Reader(page.text())
    assert [tag for tag, _ in reader.elements].count("script") == 1
    assert {"1 < 2 & 3", "<i>", '"quoted"'} <= set(reader.texts)
    for source, expected in zip(sources(reader), layers.values(), strict=True):
        np.testing.assert_array_equal(image(source), expected)


def test_images_that_have_gone_are_told(run, tmp_path, capsys):
    config, _, _ = run
    folder = tmp_path / "moved"
    shutil.copytree(config.output, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(config.data.val[0]), "/gone"))
    main(["report", str(folder)])
    assert "clsd: warning: report: no pictures: " in capsys.readouterr().err
    assert "No pictures: " in (folder / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    line = refused(capsys, tmp_path, "report", tmp_path)
    assert f"report: expected the folder of a run or of a study, got {tmp_path}" in line
    (tmp_path / "config.yaml").write_text("method: ds\n")
    (tmp_path / "history.jsonl").write_text("")
    assert "expected a run that has saved its student" in refused(
        capsys, tmp_path, "report", tmp_path
    )
    assert len(contents(tmp_path)) == 2


PROBE = """
<pre id="probe"></pre><script>
const slide = document.querySelector(".slide");
const layers = [...document.querySelectorAll("figure.slider")][0].querySelectorAll(".layers img");
const clips = () => [...layers].map((layer) => getComputedStyle(layer).clipPath);
const seen = { sizes: [...document.images].map((i) => [i.naturalWidth, i.naturalHeight]),
               requests: performance.getEntriesByType("resource").map((r) => r.name)
                 .filter((name) => !name.startsWith("data:")) };
for (const value of [0, 100, 150, 200]) {
  slide.value = value;
  slide.dispatchEvent(new Event("input"));
  seen[value] = clips();
}
document.querySelectorAll(".marks button")[1].click();
seen.clicked = slide.value;
document.querySelector("#probe").textContent = JSON.stringify(seen);
</script>"""


@pytest.mark.skipif(not BROWSER, reason="needs the browser chromium")
def test_a_browser_shows_the_page(run, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(run[2].replace("</body>", f"{PROBE}</body>"))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    seen = json.loads(found[1])
    assert all(min(size) > 0 for size in seen["sizes"]) and len(seen["sizes"]) == 7
    assert seen["requests"] == []
    covered, half, shown = "inset(0px 100% 0px 0px)", "inset(0px 50% 0px 0px)", "inset(0px)"
    clips = {
        value: [clip.replace("inset(0px 0% 0px 0px)", shown) for clip in seen[value][1:]]
        for value in ("0", "100", "150", "200")
    }
    assert clips == {
        "0": [covered, covered],
        "100": [shown, covered],
        "150": [shown, half],
        "200": [shown, shown],
    }
    assert seen["clicked"] == "100"
