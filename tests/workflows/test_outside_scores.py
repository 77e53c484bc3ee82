"""Scores from files: the method's own row to all digits, and one line for whatever does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from attribench.cli import main
from attribench.errors import DataError, UsageError
from attribench.records.files import load_attachment
from attribench.records.lds import Record, load_records
from attribench.workflows.outside_scores import read_scores

QUERIES, TRAIN = ("q0", "q1"), ("a", "b", "c")
SCORES = np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 1e-300]])

Write = Callable[[Path], None]


def parquet(path: Path, scores: NDArray[np.float64], order: NDArray[np.int64] | None = None) -> None:
    rows = [(q, t, scores[i, j]) for i, q in enumerate(QUERIES) for j, t in enumerate(TRAIN)]
    table = pd.DataFrame(rows, columns=["query", "train", "score"])
    (table if order is None else table.iloc[order]).to_parquet(path)


@pytest.mark.parametrize("dtype", ["float64", ">f8", "longdouble", "float32", "float16", "int16", "uint16", "bool"])
def test_arrays_of_any_real_type_are_read(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    np.save(tmp_path / "s.npy", values)
    assert np.array_equal(read_scores(tmp_path / "s.npy", QUERIES, TRAIN).numpy(), values.astype("float64"))


def test_ids_decide_the_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", scores=SCORES[::-1, [2, 0, 1]], query_ids=QUERIES[::-1], train_ids=["c", "a", "b"])
    parquet(tmp_path / "s.parquet", SCORES, np.random.default_rng(0).permutation(6))
    for name in ("s.npz", "s.parquet"):
        assert np.array_equal(read_scores(tmp_path / name, QUERIES, TRAIN).numpy(), SCORES)


def test_what_attribute_writes_is_read(tmp_path: Path) -> None:
    table = pd.DataFrame({"query": ["q0"] * 3, "train": ["c", "b", "a"], "rank": [1, 2, 3], "score": [3.0, 2.0, 1.0]})
    table.to_parquet(tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet", ["q0"], TRAIN).tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("s.npy", lambda p: np.save(p, SCORES.T), r"shape \(3, 2\); expected \(2, 3\).*transpose: save scores.T"),
        ("s.npy", lambda p: np.save(p, SCORES[:1]), r"shape \(1, 3\); expected \(2, 3\)"),
        ("s.npy", lambda p: np.save(p, SCORES[0]), r"shape \(3,\)"),
        ("s.npy", lambda p: np.save(p, SCORES.astype(complex)), "type complex128"),
        ("s.npy", lambda p: np.save(p, np.where(SCORES == 2, np.nan, SCORES)), "is nan for query 'q1' and train image 'b'"),
        ("s.npy", lambda p: np.save(p, np.where(SCORES == 2, -np.inf, SCORES)), "is -inf for query 'q1'"),
        ("s.npy", lambda p: np.save(p, SCORES.astype(object)), "cannot be read: .*pickle"),
        ("s.npy", lambda p: p.write_bytes(b"\x93NUMPY"), "cannot be read"),
        ("s.npy", lambda p: None, "cannot be read"),
        ("s.npz", lambda p: np.savez(p, values=SCORES), "no array 'scores'; it has: values"),
        ("s.npz", lambda p: np.savez(p, scores=SCORES, train_ids=["a", "b", "x"]), "train id 'x', which is not known"),
        ("s.npz", lambda p: np.savez(p, scores=SCORES, query_ids=["q0"]), "no query id 'q1'; it has 1 query ids, .* 2"),
        ("s.npz", lambda p: np.savez(p, scores=SCORES, train_ids=["a", "b", "b"]), "no train id 'c'"),
        ("s.npz", lambda p: np.savez(p, scores=SCORES, train_ids=[*"abcc"]), "a train id twice"),
        ("s.parquet", lambda p: parquet(p, SCORES, np.arange(5)), "no score for query 'q1' and train image 'c'"),
        ("s.parquet", lambda p: parquet(p, SCORES, np.arange(7) % 6), "two scores for query 'q0' and train image 'a'"),
        ("s.parquet", lambda p: pd.DataFrame({"query": ["q0"]}).to_parquet(p), "no column 'train'"),
        ("s.parquet", lambda p: p.write_bytes(b"PAR1"), "cannot be read"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, write: Write, message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        read_scores(tmp_path / name, QUERIES, TRAIN)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.npy, \.npz, \.parquet"):
        read_scores(tmp_path / "s.csv", QUERIES, TRAIN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a work directory, NDA's record and its scores as arrays."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        from attribench.workflows.evaluation import Evaluation

        evaluate = Evaluation.evaluate

        def saving(self: Evaluation, scores, **options):  # type: ignore[no-untyped-def]
            np.save(folder / f"{self.asked.name}.npy", scores.numpy())
            return evaluate(self, scores, **options)

        patch.setattr(Evaluation, "evaluate", saving)
        assert main(["run", "--method", "nda", *place(folder)]) == 0
    return folder


def place(folder: Path) -> list[str]:
    return ["--dataset", "digits", "--preset", "smoke", "--workdir", f"{folder}/runs", "--results", f"{folder}/results"]


def row(folder: Path, name: str) -> Record:
    (found,) = [record for record in load_records(folder / "results") if record.method == name]
    return found


@pytest.mark.slow
def test_a_method_s_own_scores_give_its_row_to_all_digits(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = "generation,validation"
    call = ["score", f"{made}/generation.npy", f"{made}/validation.npy", "--query-set", sets, "--name", "mine"]
    assert main([*call, *place(made)]) == 0
    ours, theirs = row(made, "mine"), row(made, "nda")
    assert ours.results == theirs.results
    assert (ours.access, ours.cost, ours.tuned_on) == ("UNKNOWN", None, "unknown")
    assert capsys.readouterr().out.count("unknown") == 6


@pytest.mark.slow
def test_query_sets_scored_one_after_the_other_share_a_row(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for query_set in ("validation", "generation"):
        assert main(["score", f"{made}/{query_set}.npy", "--query-set", query_set, "--name", "two", *place(made)]) == 0
    assert "two: its validation scores of" in capsys.readouterr().err
    assert row(made, "two").results == row(made, "nda").results


@pytest.mark.slow
def test_without_galleries_no_image_is_filed(made: Path, tmp_path: Path) -> None:
    call = ["score", f"{made}/validation.npy", "--name", "mine", "--galleries", "false"]
    assert main([*call, *place(made), "--results", str(tmp_path / "results")]) == 0
    record = row(tmp_path, "mine")
    tensors = load_attachment(record, tmp_path / "results")
    assert sorted(tensors or {}) == ["validation.outputs", "validation.predictions"]


@pytest.mark.slow
def test_a_method_s_row_is_not_taken(made: Path) -> None:
    before = row(made, "nda")
    assert main(["score", f"{made}/validation.npy", "--name", "nda", *place(made)]) == 2
    assert row(made, "nda") == before


@pytest.mark.slow
def test_tables_figures_and_page_stand_a_row_of_unknown_cost(made: Path, tmp_path: Path) -> None:
    results = ["--results", str(tmp_path / "results")]
    assert main(["score", f"{made}/validation.npy", "--name", "mine", *place(made), *results]) == 0
    assert main(["table", *results]) == 0
    assert main(["figures", *results, "--formats", "svg"]) == 0
    assert main(["report", *results]) == 0


@pytest.mark.parametrize(("files", "sets"), [("a.npy b.npy", "validation"), ("a.npy b.npy", "validation,validation")])
def test_each_file_needs_its_query_set(files: str, sets: str) -> None:
    assert main(["score", *files.split(), "--query-set", sets]) == 2


def test_an_unknown_query_set_is_refused(tmp_path: Path) -> None:
    assert main(["score", "a.npy", "--query-set", "validaton", *place(tmp_path)]) == 2
