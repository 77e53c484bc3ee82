"""``attribench attribute --decoys``: planted copies stand out, and where nothing is to be found hardly anything does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from attribench.cli import main
from attribench.data import ImageSet
from attribench.workflows.decoys import DecoyRequest, Pool

FASHION = Path("/usr/share/datasets/fashion-mnist")
PIXELS = ["--method", "pixel", "--image-size", "16", "--accelerator", "cpu"]
PATCHES = ["--method", "nda", "--image-size", "8", "--accelerator", "cpu", "--heat-maps", "0", "--method.timesteps",
           "[100, 300]", "--method.patch_size", "[5, 7]", "--method.low_resolution_patch_size", "6"]  # fmt: skip


def picture(generator: np.random.Generator) -> np.ndarray:
    """Noise without the finest, 16×16 grey: of two such pictures the cosine is about 0 ± 0.1."""
    coarse = generator.integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC))


def write(folder: Path, images: list[np.ndarray], subfolders: int = 1) -> None:
    for number, image in enumerate(images):
        place = folder / f"by-{number % subfolders}" if subfolders > 1 else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image, np.uint8)).save(place / f"{number}.png")


def call(folder: Path, *more: str, options: list[str] = PIXELS) -> int:
    return main(
        ["attribute", "--train", str(folder / "train"), "--queries", str(folder / "queries"), "--top", "0",
         "--out", str(folder / "out"), "--workdir", str(folder / "runs"), *options, *more]
    )  # fmt: skip


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "out" / "scores.parquet")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 train images in four folders; 20 queries, the first ten noisy copies of train images, the others new."""
    folder = tmp_path_factory.mktemp("planted")
    generator = np.random.default_rng(0)
    train = [picture(generator) for _ in range(600)]
    train[41] = train[40]  # near duplicates
    copies = [np.clip(train[40 + 20 * n] + generator.normal(0, 4, (16, 16)), 0, 255) for n in range(10)]
    write(folder / "train", train, subfolders=4)
    write(folder / "queries", [*copies, *(picture(generator) for _ in range(10))])
    write(folder / "unseen", [picture(generator) for _ in range(600)])
    return folder


@pytest.mark.parametrize("source", ["auto", "unseen"])
def test_copies_stand_out_and_new_images_do_not(planted: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = source if source == "auto" else str(planted / source)
    assert call(planted, "--decoys", named, "--contributors", "subfolder") == 0
    table = scores(planted)
    assert list(table.columns) == ["query", "train", "rank", "score", "p_value", "adjusted", "stands_out"]
    ranked = set(table["train"])
    assert len(table) == 20 * len(ranked) == 20 * (540 if source == "auto" else 600)
    found = table[table["stands_out"]]
    right = {f"{n}.png": f"by-{(40 + 20 * n) % 4}/{40 + 20 * n}.png" for n in range(10)}
    right = {query: train for query, train in right.items() if train in ranked}
    assert len(right) >= 5
    own = table.set_index(["query", "train"]).loc[list(right.items())]
    # Sixty decoys show only what is far above all of them; more show what is less so.
    assert (own["p_value"] < 0.02).mean() >= 0.8
    assert source == "auto" or own["stands_out"].mean() >= 0.8
    new = found[found["query"].isin([f"{n}.png" for n in range(10, 20)])]
    assert new["query"].nunique() <= 2
    printed = capsys.readouterr().out
    assert ("60 of the 600 train images, drawn at random" if source == "auto" else "600 images from") in printed
    assert "queries train images stand out at 5 % false discovery" in printed
    page = (planted / "out" / "report.html").read_text("utf-8")
    assert "stands out</strong>" in page
    assert "Nothing here stands out from the decoys" in page
    assert "Contributors, by sum of scores" in page


@pytest.mark.slow
def test_pasted_crops_stand_out_to_a_method_that_compares_patches(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    train = [picture(generator) for _ in range(300)]
    queries = [picture(generator).copy() for _ in range(40)]
    for number in range(20):  # three quarters of the side of a train image, moved, on another picture
        queries[number][3:15, 1:13] = train[10 * number][2:14, 2:14]
    write(tmp_path / "train", train)
    write(tmp_path / "queries", queries)
    write(tmp_path / "unseen", [picture(generator) for _ in range(300)])
    options = ["--method", "nda", "--image-size", "16", "--accelerator", "cpu", "--heat-maps", "0", "--method.timesteps",
               "[100]", "--method.patch_size", "7", "--method.low_resolution_patch_size", "6"]  # fmt: skip
    assert call(tmp_path, "--decoys", str(tmp_path / "unseen"), options=options) == 0
    table = scores(tmp_path)
    found = table[table["stands_out"]]
    hits = [((found["query"] == f"{n}.png") & (found["train"] == f"{10 * n}.png")).any() for n in range(20)]
    assert np.mean(hits) >= 0.8
    new = found[found["query"].isin([f"{n}.png" for n in range(20, 40)])]["query"].nunique() / 20
    assert new <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 20)


def test_groups_have_totals(planted: Path) -> None:
    assert call(planted, "--decoys", str(planted / "unseen"), "--contributors", "subfolder") == 0
    groups, table = pd.read_parquet(planted / "out" / "groups.parquet"), scores(planted)
    contributors = groups[groups["kind"] == "contributor"]
    assert sorted(set(contributors["group"])) == ["by-0", "by-1", "by-2", "by-3"]
    assert set(contributors["images"]) == {150}
    own = table.assign(group=table["train"].str.split("/").str[0]).groupby(["query", "group"])["score"].sum()
    for row in contributors.itertuples():
        expected = own[:, row.group].sum() if row.query == "*" else own[row.query, row.group]
        assert row.total == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert contributors["share"].isna().all()  # cosines may be negative
    assert contributors["stand_out"].sum() == 2 * table["stands_out"].sum()  # a query, and all of them together
    clusters = groups[groups["kind"] == "cluster"]
    first = clusters[clusters["query"] == "0.png"].iloc[0]
    assert (first["group"], first["images"]) == ("by-0/40.png", 2)
    assert first["adjusted"] <= 0.05  # the first query is a copy of both
    members = pd.read_parquet(planted / "out" / "groups-members.parquet")
    assert set(members[members["kind"] == "cluster"]["train"]) == {"by-0/40.png", "by-1/41.png"}
    page = (planted / "out" / "report.html").read_text("utf-8")
    assert "Near duplicates, by sum of scores" in page
    number = int(contributors[contributors["query"] == "*"].set_index("group")["stand_out"]["by-0"])
    assert number > 1
    overall = page.split("<tbody>")[1]  # of all queries together
    assert f'<th scope="row">by-0</th><td>150</td><td>{number}</td>' in overall


def test_shares_are_of_the_whole_where_no_score_is_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    train = ImageSet(
        torch.randint(0, 256, (6, 1, 8, 8), generator=generator).byte(), tuple(f"{n % 2}/{n}" for n in range(6))
    )
    decoys = ImageSet(torch.randint(0, 256, (20, 1, 8, 8), generator=generator).byte(), tuple(map(str, range(20))))
    pool = Pool(train, decoys, "other noise", DecoyRequest("DIR"), contributors=["0", "1"] * 3)
    scores = torch.rand(2, 26, generator=generator)
    scores[1, 3] = -0.1
    judgement = pool.judge(scores)
    assert judgement is not None
    shares = judgement.groups[0].shares
    whole = scores[0, :6].sum().item()
    assert shares[0].tolist() == pytest.approx([scores[0, group:6:2].sum().item() / whole for group in range(2)])
    assert shares[1:].isnan().all()  # the second query, and both together


@pytest.mark.parametrize("copies", [2, 5, 10])
def test_duplicates_that_have_nothing_to_do_with_a_query_stand_out_no_more_than_one_image(copies: int) -> None:
    generator = torch.Generator().manual_seed(copies)
    distinct, queries = 40, 500
    pictures = torch.randint(0, 256, (distinct, 1, 8, 8), generator=generator).byte()
    ids = tuple(f"one/{n}-{copy}" for n in range(distinct) for copy in range(copies))
    train = ImageSet(pictures.repeat_interleave(copies, dim=0), ids)
    decoys = ImageSet(torch.randint(0, 256, (200, 1, 8, 8), generator=generator).byte(), tuple(map(str, range(200))))
    pool = Pool(train, decoys, "other noise", DecoyRequest("DIR"), contributors=["one"] * len(train))
    own = torch.randn(queries, distinct, generator=generator).repeat_interleave(copies, dim=1)
    judgement = pool.judge(torch.cat([own, torch.randn(queries, 200, generator=generator)], dim=1))
    assert judgement is not None
    for groups, number in zip(judgement.groups, (1, distinct), strict=True):
        found = groups.p_values[:queries]
        assert found.shape == (queries, number)
        # One set of decoys a query: its p-values go together, and their share varies as of so many queries at least.
        for level in (0.05, 0.2):
            slack = 3 * np.sqrt(level * (1 - level) / queries)
            assert level - 2 * slack <= (found <= level).double().mean().item() <= level + slack


@pytest.mark.parametrize("world", ["log-normal", "sparse"])
def test_near_duplicates_whose_scores_have_nothing_in_common_stand_out_no_more_than_one_image(world: str) -> None:
    """Their mean would: of twenty very skewed scores one is high. A contributor of them alike, and one of single images."""
    generator = torch.Generator().manual_seed(3)
    copies, distinct, queries = 20, 6, 400
    pictures = torch.randint(0, 256, (distinct, 1, 8, 8), generator=generator).byte()
    single = torch.randint(0, 256, (20, 1, 8, 8), generator=generator).byte()
    number = copies * distinct + len(single)
    train = ImageSet(torch.cat([pictures.repeat_interleave(copies, dim=0), single]), tuple(map(str, range(number))))
    decoys = ImageSet(torch.randint(0, 256, (200, 1, 8, 8), generator=generator).byte(), tuple(map(str, range(200))))
    scores = (3 * torch.randn(queries, number + 200, generator=generator, dtype=torch.float64)).exp()
    if world == "sparse":
        scores *= torch.rand(scores.shape, generator=generator) < 0.05
    owners = ["one"] * (copies * distinct) + ["many"] * len(single)
    judgement = Pool(train, decoys, "other noise", DecoyRequest("DIR"), contributors=owners).judge(scores)
    assert judgement is not None
    for groups in judgement.groups:
        found = (groups.p_values[:queries] <= 0.05).double().mean(dim=0)
        assert (found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / queries)).all(), groups.kind


def test_of_many_train_images_a_tenth_is_set_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(4)
    train = [picture(generator) for _ in range(1000)]
    write(tmp_path / "train", train)
    write(tmp_path / "queries", [picture(generator) for _ in range(5)])
    assert call(tmp_path, "--decoys", "auto") == 0
    assert (
        "100 of the 1000 train images, drawn at random and set apart before anything else: not ranked"
        in capsys.readouterr().out
    )
    assert scores(tmp_path).groupby("query").size().tolist() == [900] * 5


def test_a_train_image_among_the_decoys_is_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(2)
    train = [picture(generator) for _ in range(30)]
    write(tmp_path / "train", train)
    write(tmp_path / "queries", train[:1])
    write(tmp_path / "decoys", [*(picture(generator) for _ in range(40)), *train[:3]])
    assert call(tmp_path, "--decoys", str(tmp_path / "decoys")) == 0
    assert "40 images from" in (printed := capsys.readouterr().out)
    assert "without 3 that are train images or equal to another" in printed


def test_copies_are_set_apart_together_and_what_has_gone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(6)
    different = [picture(generator) for _ in range(220)]
    write(tmp_path / "train", [*different, *different])
    write(tmp_path / "queries", different[:1])
    owners = "\n".join(f"{n}.png,{n % 220}" for n in range(440))
    (tmp_path / "who.csv").write_text(f"train,contributor\n{owners}\n", "utf-8")
    assert call(tmp_path, "--decoys", "auto", "--contributors", str(tmp_path / "who.csv")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "50 of the 440 train images" in printed
    assert "not ranked, nor are 50 copies of theirs; of contributors all of whose images are among them" in printed
    assert "and 47 more" in printed
    table = scores(tmp_path)
    assert len(table) == 340
    ranked = set(table["train"])
    assert all((f"{n}.png" in ranked) == (f"{n + 220}.png" in ranked) for n in range(220))


def test_copies_do_not_make_up_for_too_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(7)
    write(tmp_path / "train", 4 * [picture(generator) for _ in range(60)])
    write(tmp_path / "queries", [picture(generator)])
    assert call(tmp_path, "--decoys", "auto") == 2
    assert "60 different ones are too few for that" in capsys.readouterr().err


def test_train_images_may_lie_in_a_folder_called_decoy() -> None:
    noise = torch.randint(0, 256, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    train = ImageSet(noise[:30], tuple(f"decoy/{number}.png" for number in range(30)))
    decoys = ImageSet(noise[30:], tuple(f"{number}.png" for number in range(30)))
    everything = Pool(train, decoys, "others", DecoyRequest("DIR")).everything
    assert everything.ids[:30] == train.ids
    assert len(set(everything.ids)) == 60


def test_without_decoys_nothing_is_said(planted: Path) -> None:
    assert call(planted) == 0
    assert list(scores(planted).columns) == ["query", "train", "rank", "score"]
    assert 'id="judged"' not in (planted / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--contributors", "subfolder"], 2, "--contributors needs --decoys"),
        (["--decoys", "auto", "--false-discovery", "0"], 2, "must lie between 0 and 1"),
        (["--decoys", "/nowhere"], 1, "There is no folder /nowhere"),
        (["--decoys", "QUERIES"], 2, "20 at least are needed"),
        (["--decoys", "auto"], 2, "12 different ones are too few for that: 200 at least are needed"),
        (["--decoys", "UNSEEN", "--contributors", "/nowhere.csv"], 1, "cannot be read as CSV"),
    ],
)
def test_wrong_calls(
    tmp_path: Path, more: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(3)
    write(tmp_path / "train", [picture(generator) for _ in range(12)])
    write(tmp_path / "queries", [picture(generator)])
    write(tmp_path / "unseen", [picture(generator) for _ in range(20)])
    assert call(tmp_path, *[str(tmp_path / one.lower()) if one.isupper() else one for one in more]) == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("method", ["pixel", "nda"])
@pytest.mark.parametrize("source", ["auto", "held-out"])
def test_clothes_find_nothing_among_digits(tmp_path: Path, method: str, source: str) -> None:
    """Real images that have nothing to do with each other: for at most one query of twenty anything stands out."""
    from sklearn.datasets import load_digits

    from attribench.datamodules.fashion_mnist import FashionMnist

    digits = np.rint(load_digits().images * (255 / 16))
    order = np.random.default_rng(0).permutation(len(digits))
    clothes = FashionMnist(root=FASHION, num_train=10, num_queries=100, image_size=8, download=False).validation
    write(tmp_path / "train", list(digits[order[:1200]]))
    write(tmp_path / "queries", list(clothes.images[:, 0].numpy()))
    write(tmp_path / "held-out", list(digits[order[1200:1700]]))
    options = PATCHES if method == "nda" else ["--method", "pixel", "--image-size", "8", "--accelerator", "cpu"]
    named = source if source == "auto" else str(tmp_path / source)
    assert call(tmp_path, "--decoys", named, options=options) == 0
    found = scores(tmp_path)
    share = found[found["stands_out"]]["query"].nunique() / 100
    assert share <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 100)
