"""The emoji recipe, on coloured shapes: what is held out, what the judge learns, what it says of models that draw."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diff_diffusion.errors import ConfigError, DataError, IncompatibleError, MissingPackageError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "emoji"
COLOURS = {
    "red": ("红色", (220, 40, 40)),
    "green": ("绿色", (40, 180, 60)),
    "blue": ("蓝色", (40, 80, 230)),
    "black": ("黑色", (20, 20, 20)),
    "yellow": ("黄色", (240, 200, 30)),
}
SHAPES = {
    "circle": ("圆", lambda pen, box, fill: pen.ellipse(box, fill=fill)),
    "square": ("方块", lambda pen, box, fill: pen.rectangle(box, fill=fill)),
    "bar": ("横条", lambda pen, box, fill: pen.rectangle((box[0], 13, box[2], 18), fill=fill)),
    "ring": ("圈", lambda pen, box, fill: pen.ellipse(box, outline=fill, width=3)),
}
SIZES = {"large": ("大", 3), "small": ("小", 10)}


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules, imported as its scripts import each other: their folder is the first on the path."""
    names = ("build", "pairs", "retrieval", "dual", "evaluate")
    shadowed = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(RECIPE))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(RECIPE))
        for name in names:
            sys.modules.pop(name, None)
            if shadowed[name] is not None:
                sys.modules[name] = shadowed[name]


def shapes():
    """40 pictures of three-word captions, in arrays as build.py takes them."""
    x, cap, zh = [], [], []
    for (size, (da, edge)), (colour, (hong, rgb)), (shape, (yuan, draw)) in product(
        SIZES.items(), COLOURS.items(), SHAPES.items()
    ):
        image = Image.new("RGB", (32, 32), "white")
        draw(ImageDraw.Draw(image), (edge, edge, 31 - edge, 31 - edge), rgb)
        x.append(np.asarray(image))
        cap.append(f"{size} {colour} {shape}")
        zh.append(f"{da}{hong}{yuan}")
    return {"x": np.stack(x), "cap": np.array(cap), "zh": np.array(zh), "cat": np.array(["Symbols"] * len(x))}


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    place = tmp_path_factory.mktemp("表情")
    np.savez(place / "形状.npz", **shapes())
    recipe["build"].main([str(place / "表情符号"), "--arrays", str(place / "形状.npz")])
    return place / "表情符号"


@pytest.fixture(scope="module")
def duals(recipe, folder):
    """The judge and the twin, as the command makes them."""
    recipe["dual"].main([str(folder), "--out", str(folder.parent / "评判"), "--epochs", "40"])
    return recipe["dual"].load_duals(folder.parent / "评判", folder)


def rows(folder, split):
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text("utf-8").splitlines()]


# ---- build.py -------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_pictures_with_both_captions(folder):
    arrays = shapes()
    expected = {c: (z, x) for x, c, z in zip(arrays["x"], arrays["cap"], arrays["zh"], strict=True)}
    found = {}
    for split in ("train", "val"):
        assert len(list((folder / split).glob("*.png"))) == len(rows(folder, split))
        for row in rows(folder, split):
            assert row["category"] == "Symbols"
            assert row["file_name"].isascii()
            english, chinese = row["caption"]
            found[english] = chinese, np.asarray(Image.open(folder / split / row["file_name"]))
    assert found.keys() == expected.keys()
    for english, (chinese, pixels) in found.items():
        assert chinese == expected[english][0]
        np.testing.assert_array_equal(pixels, expected[english][1])
    raw = (folder / "train" / "metadata.jsonl").read_text("utf-8")
    assert "红色" in raw, "readable, not escaped"


def test_every_held_out_word_occurs_in_training(recipe, folder):
    words = recipe["build"].words
    known = set().union(*(words(row["caption"][0]) for row in rows(folder, "train")))
    assert len(rows(folder, "val")) == 3, "9 % of 40"
    for row in rows(folder, "val"):
        assert len(words(row["caption"][0])) > 1
        assert words(row["caption"][0]) <= known
        assert row["caption"] not in [other["caption"] for other in rows(folder, "train")]


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_the_split_law_holds_however_much_is_asked_for(recipe, share):
    captions = [
        "red heart",
        "red car",
        "blue car",
        "blue heart",
        "heart",
        "cat",
        "fish",
        "cat fish",
        "red red",
        "sun up",
    ]
    out = recipe["build"].held_out(captions, share)
    words = recipe["build"].words
    known = set().union(*(words(c) for i, c in enumerate(captions) if i not in out))
    assert all(words(captions[i]) <= known and len(words(captions[i])) > 1 for i in out)
    assert len(out) <= share * len(captions)
    assert captions.index("sun up") not in out, "its words occur nowhere else"
    assert share < 0.5 or out


def test_the_order_of_the_captions_does_not_matter(recipe):
    captions = shapes()["cap"].tolist()
    there, back = (recipe["build"].held_out(c) for c in (captions, captions[::-1]))
    assert {captions[i] for i in there} == {captions[::-1][i] for i in back}


def test_equal_pictures_and_equal_captions_are_kept_once(recipe, tmp_path):
    arrays = shapes()
    arrays["x"][1] = arrays["x"][0]
    arrays["zh"][3] = arrays["zh"][2]
    arrays["cat"] = np.array(["Symbols"] * 5 + ["Component"] + ["Symbols"] * 34)
    arrays["cap"][4] = "flag cn"
    np.savez(tmp_path / "a.npz", **arrays)
    recipe["build"].main([str(tmp_path / "out"), "--arrays", str(tmp_path / "a.npz")])
    kept = {row["caption"][0] for split in ("train", "val") for row in rows(tmp_path / "out", split)}
    assert kept == set(arrays["cap"]) - {arrays["cap"][i] for i in (1, 3, 4, 5)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zh": None}, "has no zh"),
        ({"x": np.zeros((40, 32, 32), np.uint8)}, r"uint8 \[N, S, S, 3\]"),
        ({"x": np.zeros((40, 32, 32, 3))}, r"float64"),
        ({"cap": np.array(["red"])}, "one text for each"),
        ({"x": np.zeros((40, 16, 16, 3), np.uint8)}, "--size 16"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(recipe, tmp_path, change, words):
    arrays = {name: values for name, values in (shapes() | change).items() if values is not None}
    np.savez(tmp_path / "数据.npz", **arrays)
    with pytest.raises(DataError, match=words):
        recipe["build"].from_arrays(tmp_path / "数据.npz", 32)


def test_a_file_of_something_else_is_no_array(recipe, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK not really")
    with pytest.raises(SystemExit, match=r"cannot be read as \.npz"):
        recipe["build"].main([str(tmp_path / "out"), "--arrays", str(tmp_path / "a.npz")])


def test_a_folder_with_something_in_it_is_left_alone(recipe, folder):
    np.savez(folder.parent / "b.npz", **shapes())
    with pytest.raises(SystemExit, match="not empty"):
        recipe["build"].main([str(folder), "--arrays", str(folder.parent / "b.npz")])


def test_a_machine_without_the_font_is_told_what_to_install(recipe, monkeypatch):
    monkeypatch.setenv("PATH", "")

    def no_font(*_):
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", no_font)
    with pytest.raises(DataError, match="apt install fonts-noto-color-emoji"):
        recipe["build"].find_font()


def test_without_the_emoji_package_the_pip_command_is_named(recipe, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'diff-diffusion\[recipes\]'"):
        recipe["build"].from_font(tmp_path / "x.ttf", 32)


def test_a_file_that_is_no_font_is_refused(recipe, tmp_path):
    pytest.importorskip("emoji")
    (tmp_path / "字体.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match="cannot be used as a font"):
        recipe["build"].from_font(tmp_path / "字体.ttf", 32)


@pytest.fixture
def pen(recipe, monkeypatch):
    """A stand-in for a font of colour bitmaps: a red disc for each ☀, one of the ink's colour for each O."""

    class Discs:
        def getlength(self, text):
            return 136.0 * len(text)

        def getbbox(self, text):
            return (0, 0, 136, 128)

    def disc(self, corner, text, *, fill, **_):
        for letter in text.strip():
            self.ellipse((*corner, corner[0] + 127, corner[1] + 127), fill=fill if letter == "O" else "red")

    monkeypatch.setattr(recipe["build"].ImageDraw.ImageDraw, "text", disc)
    monkeypatch.setattr(recipe["build"].ImageFont, "truetype", lambda *_: Discs())
    return recipe["build"].Pen(Path("any"))


def test_colour_glyphs_are_drawn_on_white(pen):
    picture = pen.draw("☀")
    assert picture.size == (136, 136)
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((64, 68)) == (255, 0, 0)
    assert [picture.getpixel((64, y)) for y in (3, 4, 131, 132)] == [(255,) * 3, (255, 0, 0), (255, 0, 0), (255,) * 3]


@pytest.mark.parametrize("text", ["☀☀", " ", "O"])
def test_several_glyphs_none_and_outlines_are_no_picture(pen, text):
    assert pen.draw(text) is None


def test_names_become_captions(recipe):
    assert recipe["build"]._caption(":red_heart:") == "red heart"
    assert recipe["build"]._caption(":家庭_男人女人:") == "家庭 男人女人"
    assert recipe["build"]._slug("Côte d’Ivoire / ñ") == "cote-divoire-n"
    assert recipe["build"]._slug("红心") == "emoji"


# ---- the judge ------------------------------------------------------------------------------------------------------


def test_first_of_few_is_the_mean_over_every_draw(recipe):
    """19 others are drawn from 21: each of the 210 draws, counted."""
    from itertools import combinations

    retrieval = recipe["retrieval"]
    prompts, ranks = 22, torch.tensor([1, 3, 5, 6])
    found = retrieval.Retrieval.of(ranks, prompts)
    right = [
        np.mean([all(other >= rank for other in draw) for draw in combinations(range(1, prompts), 19)])
        for rank in ranks.tolist()
    ]
    assert found.first_of_few.share == pytest.approx(np.mean(right), abs=1e-12)
    assert found.first.share == 0.25
    assert found.in_five.share == 0.75, "and not the sixth"


def test_the_interval_is_for_the_number_of_prompts(recipe):
    from diff_diffusion.evaluation.score import interval

    found = recipe["retrieval"].Retrieval.of(torch.tensor([1, 2] * 50), 10).first
    assert (found.share, found.low, found.high) == (0.5, *interval(5, 10))


def test_both_learn_the_shapes_and_only_the_judge_saw_those_held_out(recipe, folder, duals):
    pairs = recipe["pairs"]
    train, val = (pairs.read_pairs(folder / split) for split in ("train", "val"))
    every = train + val
    assert len(every) == 40
    for captions in every.captions:
        assert recipe["dual"].judged(duals["judge"], every.images, captions).first.share > 0.9
    for mine, captions in zip(val.captions, every.captions, strict=True):
        prompts = list(captions)
        images = duals["twin"].images(val.images)
        with torch.no_grad():
            ranks = recipe["dual"].ranks(
                images @ duals["twin"].texts(prompts).T, [prompts.index(caption) for caption in mine]
            )
        # By chance three pictures that nobody saw come among the first ten of forty once in 64 times.
        assert int(ranks.max()) <= 10


def test_training_is_the_same_on_every_run(recipe, folder):
    train = recipe["pairs"].read_pairs(folder / "train")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (recipe["dual"].train_dual(train, 1).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_twin_saw_what_is_in_train_and_the_judge_what_is_in_val_too(recipe, folder, tmp_path):
    dual, read = recipe["dual"], recipe["pairs"].read_pairs
    dual.main([str(folder), "--out", str(tmp_path / "评判"), "--epochs", "1"])
    train, val = read(folder / "train"), read(folder / "val")
    for name, pairs in (("twin", train), ("judge", train + val)):
        kept, made = (
            dual.load_duals(tmp_path / "评判", folder)[name].state_dict(),
            dual.train_dual(pairs, 1).state_dict(),
        )
        assert all(torch.equal(kept[key], made[key]) for key in made)


def test_a_judge_of_other_emoji_is_refused(recipe, folder, duals, tmp_path):
    arrays = shapes()
    arrays["cap"][0] = "another name"
    np.savez(tmp_path / "a.npz", **arrays)
    recipe["build"].main([str(tmp_path / "other"), "--arrays", str(tmp_path / "a.npz")])
    with pytest.raises(DataError, match=r"run dual\.py on these again"):
        recipe["dual"].load_duals(folder.parent / "评判", tmp_path / "other")


def test_a_folder_that_build_did_not_make_is_refused(recipe, tmp_path):
    with pytest.raises(DataError, match=r"make the folder with build\.py"):
        recipe["pairs"].read_pairs(tmp_path / "没有")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n', "utf-8")
    with pytest.raises(DataError, match=r"not as build\.py writes it"):
        recipe["pairs"].read_pairs(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": ["red"]}\n', "utf-8")
    with pytest.raises(DataError, match="has 1 captions a picture"):
        recipe["pairs"].read_pairs(tmp_path)


# ---- evaluate.py ----------------------------------------------------------------------------------------------------


class Remembers:
    """A model that draws the real picture of every caption, in either language."""

    def __init__(self, pairs):
        self.known = {c: image for captions in pairs.captions for c, image in zip(captions, pairs.images, strict=True)}
        self.asked = []

    def sample(self, num, *, cond, seed, guidance):
        assert len(cond["caption"]) == num
        self.asked.append((list(cond["caption"]), seed, guidance))
        return torch.stack([self.known[caption] for caption in cond["caption"]]).float()


class Noisy:
    """A model that draws noise."""

    def sample(self, num, *, cond, seed, guidance):
        return 255 * torch.rand(num, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_model_is_judged_as_the_real_pictures_are(recipe, folder, duals, tmp_path):
    every = recipe["pairs"].read_pairs(folder / "train") + recipe["pairs"].read_pairs(folder / "val")
    model = Remembers(every)
    found = recipe["evaluate"].evaluate(model, duals, every, tmp_path, per_prompt=2, seed=5, guidance=3.0)
    assert list(found) == ["English", "Chinese"]
    for language, captions in zip(found, every.captions, strict=True):
        for name in ("judge", "twin"):
            drawn, real = (found[language][f"{kind}, to the {name}"] for kind in ("drawn", "real"))
            assert drawn == real
            assert drawn.prompts == 40
        assert found[language]["drawn, to the judge"].first.share > 0.9
        assert ([c for c in captions for _ in range(2)], 5, 3.0) in model.asked
        with Image.open(tmp_path / f"{language.lower()}.png") as page:
            assert page.height > 24 * 64
    written = json.loads((tmp_path / "evaluation.json").read_text("utf-8"))
    assert written["found"]["Chinese"]["real, to the judge"]["prompts"] == 40
    assert written["prompts"]["Chinese"] == list(every.captions[1])
    assert written["guidance"] == 3.0


def test_a_model_that_draws_noise_is_found_by_chance(recipe, folder, duals, tmp_path):
    every = recipe["pairs"].read_pairs(folder / "train") + recipe["pairs"].read_pairs(folder / "val")
    found = recipe["evaluate"].evaluate(Noisy(), duals, every, tmp_path, per_prompt=4)
    for rows_of in found.values():
        # Pictures of noise look alike to it, so each finds the same few prompts.
        assert rows_of["drawn, to the judge"].first.share <= 4 / 40
        assert rows_of["real, to the judge"].first.share > 0.9


def test_the_contact_sheet_shows_the_real_picture_and_then_the_drawn_ones(recipe, folder):
    val = recipe["pairs"].read_pairs(folder / "val")
    pictures = torch.zeros(2 * len(val), 3, 32, 32)
    page = np.asarray(recipe["evaluate"].contact_sheet(val, pictures, val.captions[0]))
    real = val.images[0].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
    places = [
        (y, x)
        for y in range(40)
        for x in range(page.shape[1] - 210, page.shape[1] - 200)
        if np.array_equal(page[y : y + 64, x : x + 64], real)
    ]
    assert len(places) == 1
    y, x = places[0]
    assert not page[y : y + 64, x + 68 : x + 132].any()
    assert not page[y : y + 64, x + 136 : x + 200].any()


def test_what_cannot_be_compared_is_refused(recipe, folder, duals, tmp_path):
    val = recipe["pairs"].read_pairs(folder / "val")
    with pytest.raises(ConfigError, match="at least 1 picture a prompt"):
        recipe["evaluate"].evaluate(Remembers(val), duals, val, tmp_path, per_prompt=0)

    class Grey(Noisy):
        def sample(self, num, **_):
            return torch.zeros(num, 1, 16, 16)

    with pytest.raises(IncompatibleError, match="name the folder it was trained on"):
        recipe["evaluate"].evaluate(Grey(), duals, val, tmp_path)
