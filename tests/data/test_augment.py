from __future__ import annotations

import gzip
import os
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import cv2
import numpy as np
import pytest
from leftovers import MARK

from aios_jupyter.commands import Host, invoke
from aios_jupyter.data import augment as verb
from aios_jupyter.data import chunks, sounds
from aios_jupyter.data.augment import augment, preview, to_png
from aios_jupyter.data.catalog import Catalog
from aios_jupyter.data.formats import decode_image
from aios_jupyter.data.pipeline import Pipeline
from aios_jupyter.data.preview import png
from aios_jupyter.errors import AiosError, ClusterError, ConflictError, NotFoundError, UsageError

POLICY = "rotate(15), shift(0.1), scale(0.9, 1.1), hflip, noise(0.05), blur(1), cutout(0.2)"


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    from distributed import LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        # It lives as long as this process: none of what a test leaves behind.
        patch.delenv(MARK, raising=False)
        resource_tracker.ensure_running()
    # Its nannies leave thread settings in this process's environment, for every later child.
    before = dict(os.environ)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def client(cluster) -> Iterator:
    from distributed import Client

    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def source(catalog, digits):
    return catalog.add_arrays("digits", *digits)


def tree(folder) -> dict[str, bytes]:
    folder = Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_originals_come_first_then_each_copy_with_labels_kept(catalog, source, digits):
    x, y = digits
    entry = augment("digits", "more", POLICY, copies=3, seed=5)
    got_x, got_y = catalog.load("more")
    assert entry == catalog.get("more")
    assert got_x.shape == (4 * len(x), 28, 28)
    assert np.array_equal(got_y, np.tile(y, 4))
    assert np.array_equal(got_x[: len(x)], x)
    for copy in (1, 2, 3):
        part = got_x[copy * len(x) : (copy + 1) * len(x)]
        assert np.array_equal(part, Pipeline(POLICY, 5).apply(x, copy=copy))
    assert entry.made_from == (source.ref,)
    assert entry.how.startswith("augment rotate(-15, 15), shift(-0.1, 0.1)")
    assert entry.how.endswith("copies=3, seed=5")


def scaled(client, workers: int) -> None:
    client.cluster.scale(workers)
    for _ in range(200):
        if len(client.scheduler_info(n_workers=-1)["workers"]) == workers:
            return
        time.sleep(0.1)
    raise AssertionError(f"there are not {workers} workers after 20 s")


def test_one_and_two_workers_and_this_process_give_the_same_bytes(client, catalog, digits):
    from distributed import get_task_stream

    def workers_used(name: str):
        with get_task_stream(client) as stream:
            entry = augment(digits, name, POLICY, copies=2, seed=1, client=client)
        return entry, {task["worker"] for task in stream.data}

    here = augment(digits, "here", POLICY, copies=2, seed=1)
    two, used = workers_used("two")
    assert len(used) == 2
    scaled(client, 1)
    try:
        one, used = workers_used("one")
        assert len(used) == 1
    finally:
        scaled(client, 2)
    assert here.version == one.version == two.version
    other = augment(digits, "other", POLICY, copies=2, seed=2)
    assert other.version != here.version


def test_folders_are_the_same_from_workers_and_here_with_originals_and_labels(
    client, catalog, photos, tmp_path
):
    here = augment(photos, "here", POLICY, copies=2, seed=1)
    there = augment(str(photos), tmp_path / "there", POLICY, copies=2, seed=1, client=client)
    assert there.version == here.version
    assert (here.rows, here.classes, here.format) == (15, ("cat", "dog"), "folder")
    files = tree(tmp_path / "there")
    assert files == tree(catalog.get("here").url)
    originals = {name: blob for name, blob in tree(photos).items() if name[:4] in {"cat/", "dog/"}}
    assert {name: files[name] for name in originals} == originals
    assert set(files) - set(originals) == {
        name.replace(".", f"-aug{copy}.") for name in originals for copy in (1, 2)
    }
    shapes = {name: decode_image(blob, name).shape for name, blob in files.items()}
    assert shapes["dog/a-aug1.png"] == (16, 16)
    assert shapes["cat/c-aug2.jpg"] == (40, 20, 3)
    first = decode_image(originals["cat/a.png"], "")
    assert np.array_equal(
        decode_image(files["cat/a-aug1.png"], ""), Pipeline(POLICY, 1).apply(first[None])[0]
    )


def test_a_result_can_be_augmented_again_without_a_clash_of_names(photos, catalog):
    augment(photos, "once", "hflip(1)", copies=1)
    twice = augment("once", "twice", "vflip(1)", copies=1)
    assert twice.rows == 20
    assert len(tree(twice.url)) == 20


def test_resize_gives_originals_and_copies_one_size(photos, catalog):
    (photos / "dog" / "a.png").unlink()
    x, y = catalog.load(augment(photos, "small", "rotate(10), resize(12, 14)", copies=2))
    assert x.shape == (12, 12, 14, 3)
    assert np.bincount(y).tolist() == [9, 3]


def test_resize_of_arrays(catalog, digits):
    x, _ = digits
    augment(digits, "large", "rotate(10), resize(32, 40)", copies=1)
    got, _ = catalog.load("large")
    assert got.shape == (2 * len(x), 32, 40)
    assert np.array_equal(got[: len(x)], Pipeline("resize(32, 40)").apply(x))


def test_arrays_become_parquet_when_the_suffix_says_so(catalog, digits, tmp_path):
    x, y = digits
    entry = augment((x, y), tmp_path / "out.parquet", POLICY, copies=2)
    assert (entry.name, entry.format, entry.rows) == ("out", "parquet", 3 * len(x))
    augment((x, y), tmp_path / "out.npz", POLICY, copies=2)
    from_parquet, from_npz = catalog.load(entry), catalog.load(tmp_path / "out.npz")
    assert np.array_equal(from_parquet[0], from_npz[0])
    assert np.array_equal(from_parquet[1], from_npz[1])


def test_a_destination_on_another_file_system(catalog, digits):
    entry = augment(digits, "memory://out/aug.npz", "hflip", copies=1)
    assert entry.url == "memory://out/aug.npz"
    assert catalog.load("aug")[0].shape == (580, 28, 28)


def test_originals_and_labels_may_be_left_out(catalog, digits, photos):
    x, _ = digits
    entry = augment(x, "only", "hflip(1)", copies=2, keep_original=False)
    got, labels = catalog.load(entry)
    assert labels is None
    assert np.array_equal(got, np.concatenate([x[:, :, ::-1]] * 2))
    assert augment(photos, "new", "hflip", copies=2, keep_original=False).rows == 10


def test_color_images_in_a_catalogue_of_their_own(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), np.uint8)
    mine = Catalog(tmp_path / "mine.sqlite")
    augment((x, np.arange(9)), "colors", "hue(0.1), hflip", copies=2, catalog=mine)
    assert [entry.name for entry in mine.list()] == ["colors", "mnist"]
    assert mine.load("colors")[0].shape == (27, 20, 20, 3)


@pytest.mark.parametrize("where", ["cluster", "here"])
def test_progress_rises_to_the_total(where, client, digits):
    seen: list[tuple[int, int]] = []
    augment(
        digits,
        "watched",
        POLICY,
        copies=2,
        client=client if where == "cluster" else None,
        on_progress=lambda *now: seen.append(now),
    )
    assert seen[0] == (0, 580)
    assert seen[-1] == (580, 580)
    assert len(seen) > 3
    assert seen == sorted(seen)


def test_the_same_again_is_found_and_not_made(catalog, source, monkeypatch):
    first = augment("digits", "more", POLICY, copies=2)
    seen: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "run", lambda *_: pytest.fail("it was made again"))
        again = augment("digits", "more", POLICY, 2, on_progress=lambda *now: seen.append(now))
    assert again == first
    assert seen == [(580, 580)]
    Path(first.url).write_bytes(b"damaged")
    mended = augment("digits", "more", POLICY, copies=2)
    assert mended.version == first.version
    assert len(catalog.load("more")[0]) == 870


class Stop(BaseException):
    """Stands for an interrupt in the middle."""


@pytest.mark.parametrize("form", ["arrays", "folder"])
def test_what_was_finished_before_an_interrupt_is_used(form, catalog, digits, photos, monkeypatch):
    monkeypatch.setattr(verb, "_LEAST_FILES", 2)
    data = digits if form == "arrays" else photos
    whole = augment(data, "whole", POLICY, copies=2)

    def stop(done: int, total: int) -> None:
        if done:
            raise Stop

    with pytest.raises(Stop):
        augment(data, "resumed", POLICY, copies=2, on_progress=stop)
    assert not catalog.versions("resumed")
    seen: list[tuple[int, int]] = []
    resumed = augment(data, "resumed", POLICY, copies=2, on_progress=lambda *now: seen.append(now))
    assert 0 < seen[0][0] < seen[0][1]
    assert resumed.version == whole.version


def test_an_interrupt_cancels_what_waits_on_the_cluster(client, digits, catalog):
    started = time.monotonic()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    x = np.tile(digits[0], (20, 1, 1))
    with pytest.raises(KeyboardInterrupt):
        augment(x, "big", POLICY, copies=40, client=client, on_progress=stop)
    for _ in range(100):
        left = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        if left == 0:
            break
        time.sleep(0.1)
    assert left == 0
    assert time.monotonic() - started < 20
    assert not catalog.versions("big")


def test_a_cluster_that_goes_away_is_a_cluster_error_and_the_work_goes_on_later(
    cluster, digits, client
):
    from distributed import Client

    with Client(cluster) as other:

        def close(done: int, total: int) -> None:
            if done and other.status == "running":
                other.close()

        with pytest.raises(ClusterError, match="run it again"):
            augment(digits, "lost", POLICY, copies=2, client=other, on_progress=close)
    entry = augment(digits, "lost", POLICY, copies=2, client=client)
    assert entry.version == augment(digits, "whole", POLICY, copies=2).version


def test_a_worker_that_cannot_see_the_data_says_so(tmp_path):
    task = chunks.ArrayTask("/nowhere/x.npy", 0, 1, "hflip", 0, 1, str(tmp_path / "out.npy"))
    with pytest.raises(AiosError, match="AIOS_STATE_DIR"):
        chunks.augment_rows(task)


def test_a_broken_image_is_named_also_from_a_worker(client, photos, catalog):
    (photos / "dog" / "z.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"dog/z\.png in .* is not an image"):
        augment(photos, "broken", "hflip", client=client)
    assert not catalog.versions("broken")


def test_the_same_job_twice_at_once_is_a_conflict(digits):
    def again(done: int, total: int) -> None:
        if done:
            with pytest.raises(ConflictError, match="running already"):
                augment(digits, "b", "hflip", copies=2)
            raise Stop

    with pytest.raises(Stop):
        augment(digits, "a", "hflip", copies=2, on_progress=again)


def test_nothing_but_results_and_the_cache_is_left(state, digits, photos, tmp_path):
    augment(digits, "more", "hflip", copies=1)
    augment(photos, "album", "hflip", copies=1)
    augment(photos, tmp_path / "album", "hflip", copies=1)
    assert list((state / "data" / "work").iterdir()) == []
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_folder_of_somebody_else_is_not_touched(photos, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ConflictError, match="not a new local folder"):
        augment(photos, target, "hflip")
    (target / "thesis.tex").unlink()
    augment(photos, target, "hflip(1)")
    before = tree(target)
    augment(photos, target, "vflip(1)")
    after = tree(target)
    assert set(before) == set(after)
    assert before["cat/a-aug1.png"] != after["cat/a-aug1.png"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"policy": "rotat(5)"}, UsageError, "did you mean 'rotate'"),
        ({"policy": "hflip, mixup(0.2)"}, UsageError, "aios_jupyter.augment(policy)"),
        ({"copies": 0}, UsageError, "copies must be 1 to 1000"),
        ({"seed": -1}, UsageError, "seed must not be negative"),
        ({"src": "mnits"}, NotFoundError, "did you mean 'mnist'"),
        ({"src": "./missing.npz"}, NotFoundError, "nothing at"),
        ({"dst": "a b"}, UsageError, "cannot be a dataset's name"),
        ({"dst": "./out.csv"}, UsageError, "must end in .npz or .parquet"),
        ({"src": np.zeros((3, 4, 4))}, UsageError, "uint8"),
        ({"src": (np.zeros((3, 4, 4), np.uint8), [1])}, UsageError, "3 images but 1 labels"),
    ],
)
def test_bad_input_is_one_sentence(change, error, words, catalog):
    arguments = {"src": "mnist", "dst": "out", "policy": "hflip"} | change
    with pytest.raises(error) as caught:
        augment(**arguments)
    assert words in str(caught.value)
    assert not catalog.versions("out")


def test_compressed_texts_of_a_folder_are_augmented_to_plain_ones(catalog, tmp_path):
    folder = tmp_path / "mail" / "ham"
    folder.mkdir(parents=True)
    (folder / "1.txt.gz").write_bytes(gzip.compress(b"dear all of you"))
    (folder / "2.txt").write_text("dear you")
    entry = augment(tmp_path / "mail", "more", "swap(0.5)", copies=1)
    made = tree(entry.url)
    texts = {f"ham/{n}{mark}.txt" for n in (1, 2) for mark in ("", "-aug1")}
    assert {name for name in made if name.startswith("ham")} == texts
    assert made["ham/1.txt"] == b"dear all of you"
    assert sorted(made["ham/1-aug1.txt"].split()) == [b"all", b"dear", b"of", b"you"]
    (folder / "2.txt.gz").write_bytes(gzip.compress(b"dear you"))
    with pytest.raises(UsageError, match="has a file twice, compressed and not"):
        augment(tmp_path / "mail", "more", "swap(0.5)", copies=1)


def test_a_folder_of_sounds_is_augmented_and_its_copies_have_its_length(client, catalog, tmp_path):
    random = np.random.default_rng(0)
    for number, name in enumerate(("no/a", "no/b", "yes/c")):
        path = tmp_path / "words" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = random.integers(-9000, 9000, (400, 1 + number % 2)).astype(np.int16)
        path.write_bytes(sounds.encode(sounds.Sound(samples, 8000)))
    catalog.add("words", tmp_path / "words")
    policy = "shift(0.1), speed(0.9, 1.1), noise(0.01)"
    here = augment("words", "here", policy, copies=2, seed=1)
    there = augment("words", "there", policy, copies=2, seed=1, client=client)
    assert here.version == there.version
    assert (here.rows, here.classes, here.format) == (9, ("no", "yes"), "sounds")
    assert here.schema["sound"] == catalog.get("words").schema["sound"]
    copy = sounds.read(here.url, "yes/c-aug1.wav")
    assert (copy.samples.shape, copy.rate) == ((400, 1), 8000)
    assert tree(here.url)["yes/c.wav"] == (tmp_path / "words/yes/c.wav").read_bytes()
    with pytest.raises(UsageError, match="'rotate'; it is for images, and this is for sounds"):
        augment("words", "no", "rotate(5)")
    with pytest.raises(UsageError, match="a single sound; put it into a folder"):
        augment(tmp_path / "words" / "yes" / "c.wav", "no", policy)
    (tmp_path / "words" / "yes" / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(UsageError, match=r"yes/c\.wav in .* is not a WAV file"):
        augment(tmp_path / "words", "no", policy)


def test_documents_and_lines_of_text_are_augmented(catalog, tmp_path):
    for name in ("ham/a", "spam/b"):
        path = tmp_path / "mail" / f"{name}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(f"this is a letter that says {name}\n")
    made = augment(tmp_path / "mail", "more", "drop(0.3), typo(0.1)", copies=3)
    assert (made.rows, made.classes, made.format) == (8, ("ham", "spam"), "text")
    assert tree(made.url)["ham/a.txt"] == (tmp_path / "mail/ham/a.txt").read_bytes()
    lines = [f"line number {n} of some more" for n in range(40)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    told = []
    made = augment(
        tmp_path / "lines.txt", "many", "swap(0.5)", copies=2, on_progress=lambda *n: told.append(n)
    )
    x, _ = catalog.load("many")
    assert (made.rows, x[:40].tolist(), told[-1]) == (120, lines, (80, 80))
    assert sorted(x[40].split()) == sorted(lines[0].split()) and x[40:80].tolist() != lines
    again = augment(tmp_path / "lines.txt", tmp_path / "many.txt", "swap(0.5)", copies=2)
    assert again.version == made.version
    with pytest.raises(UsageError, match=r"must end in \.txt"):
        augment(tmp_path / "lines.txt", tmp_path / "many.npz", "swap(0.5)")


def test_an_image_folder_does_not_become_a_file(photos, tmp_path):
    with pytest.raises(UsageError, match=r"must not end in \.npz"):
        augment(photos, tmp_path / "x.npz", "hflip")


def test_a_preview_shows_what_will_be_made(digits):
    x, _ = digits
    grid = preview(x, POLICY, n=9, seed=4)
    # Tiles of 28 pixels are shown twice as large, originals on the left.
    assert grid.ndim == 2
    first = x[len(x) // 6]
    tile = grid[4 : 4 + 56, 4 : 4 + 56]
    assert np.array_equal(tile[::2, ::2], first)
    made = Pipeline(POLICY, 4).apply(first[None], first=len(x) // 6, copy=1)[0]
    left = 4 + 56 + 12
    assert np.array_equal(grid[4 : 4 + 56 : 2, left : left + 56 : 2], made)


def test_a_policy_is_looked_at_in_a_shell_as_a_file(tmp_path):
    line = ["augment", "mnist", "--policy", "rotate(15)"]
    invoke([*line, "--preview", "-o", str(tmp_path / "look.png")], Host())
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="give a file"):
        invoke([*line, "--preview"], Host())
    with pytest.raises(UsageError, match="only look with --preview"):
        invoke(line, Host())
    (tmp_path / "t.csv").write_text("a\n1\n")
    with pytest.raises(UsageError, match="only images can be previewed"):
        png(tmp_path / "t.csv", "hflip")


@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_preview_is_a_png_of_any_dataset(photos, n):
    for data in ("mnist", photos):
        picture = to_png(preview(data, "rotate(15), hue(0.1)", n=n))
        decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        assert min(decoded.shape[:2]) >= 40
    with pytest.raises(UsageError, match="2 to 400"):
        preview("mnist", "hflip", n=1)
