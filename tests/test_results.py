"""Results never overwrite other files, nor the inputs that they are made from."""

import ml_collections
import pytest

from jaxmarks import results, runs
from jaxmarks.data import loading, photographs


def claim(mode, run, named="", inputs=()):
    with results.folder(mode, run, named=str(named), inputs=map(str, inputs)) as out:
        return out


def test_a_folder_is_reused_by_its_mode_alone(tmp_path):
    run, new = tmp_path / "run", tmp_path / "a" / "new"
    assert claim("predict", run) == run / "predict"
    assert claim("predict", run, named=new) == new
    assert claim("predict", run, named=new) == new  # also after a kill, which leaves only the mark
    assert claim("predict", run, named=run / "predict") == run / "predict"
    with pytest.raises(ValueError, match="it holds results of --mode=predict"):
        claim("evaluate", run, named=new)
    (tmp_path / "empty").mkdir()
    assert claim("export", run, named=tmp_path / "empty") == tmp_path / "empty"


def test_only_unchanged_stale_results_are_deleted(tmp_path):
    def write(*names, fails=False):
        with results.folder("predict", tmp_path) as out:
            (out / "corrected.csv").write_text(str(names))  # as if the user saved it meanwhile
            (out / ".git" / f"{len(names)}").touch()  # or committed
            for name in names:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_text("same")
            if fails:
                raise OSError

    visible = lambda: (p for p in (tmp_path / "predict").rglob("[!.]*") if ".git" not in p.parts)
    there = lambda: sorted(p.relative_to(tmp_path / "predict").as_posix() for p in visible())
    (tmp_path / "predict").mkdir()
    (tmp_path / "predict" / "corrected.csv").touch()  # the user's own file
    (tmp_path / "predict" / ".git").mkdir()
    write("summary.json", "anna/box.nii.gz", "anna/scouts.png", "ben/a/scouts.png", "dora.json")
    (tmp_path / "predict" / "anna" / "notes.txt").touch()
    (tmp_path / "predict" / "dora.json").write_text("edited")
    with pytest.raises(OSError):
        write("summary.json", fails=True)
    with pytest.raises(OSError):
        write("eve.json", fails=True)
    assert {"ben/a/scouts.png", "eve.json"} <= set(there())
    write("summary.json", "carl/scouts.png")
    mine = ["anna", "anna/notes.txt", "corrected.csv", "dora.json"]
    assert there() == sorted([*mine, "carl", "carl/scouts.png", "summary.json"])
    write()
    assert there() == mine and len(list((tmp_path / "predict" / ".git").iterdir())) == 4
    for damaged in ("", "predict\nsummary.json\n", "{"):
        (tmp_path / "predict" / photographs.MARK).write_text(damaged)
        write("summary.json")
        assert there() == sorted([*mine, "summary.json"])


@pytest.mark.parametrize("name", ["summary.json", "about.json", "config.json", ".hidden", "overlays"])
def test_a_folder_of_other_files_is_refused(name, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).touch()
    with pytest.raises(ValueError, match=f"{name} exists and is not a result of --mode=predict: name a new folder"):
        claim("predict", tmp_path / "run", named=tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{name} exists"):
        claim("predict", tmp_path / "run", named=tmp_path / "mine" / name if name != "overlays" else tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]


def test_a_folder_that_holds_inputs_is_refused(tmp_path):
    run, images = tmp_path / "run", tmp_path / "photographs"
    images.mkdir()
    with pytest.raises(ValueError, match="results might overwrite"):
        claim("predict", run, named=images, inputs=[images])
    out = claim("predict", run)
    (out / "predictions.tps").touch()  # which the user corrects and then evaluates
    for options in ({}, {"named": out}):
        with pytest.raises(ValueError, match=r"might overwrite .*predictions\.tps, which this command reads"):
            claim("predict", run, inputs=[images, out / "predictions.tps"], **options)
    assert claim("evaluate", run, inputs=[images, out / "predictions.tps"]) == run / "evaluate"


def test_images_of_runs_and_results_are_not_photographs(tmp_path):
    run = tmp_path / "runs" / "a"
    for folder in (run / "figures", claim("predict", run, named=tmp_path / "found", inputs=[tmp_path]), tmp_path / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.png").touch()
    (run / "config.json").touch()
    (tmp_path / "b" / "config.json").touch()  # not of a run: metrics.jsonl is missing
    (run / "metrics.jsonl").touch()
    assert photographs.listing(tmp_path) == [tmp_path / "b" / "a.png"]
    assert photographs.listing(str(tmp_path / "found")) == [tmp_path / "found" / "a.png"]  # asked for by name


def test_a_folder_is_locked_for_one_command(tmp_path):
    with results.folder("predict", tmp_path), pytest.raises(ValueError, match="another command is writing to this"):
        claim("predict", tmp_path)
    with runs.locked(tmp_path):  # the run may be in training meanwhile
        assert claim("predict", tmp_path) == tmp_path / "predict"


def test_inputs_cover_all_datasets_and_annotators(tmp_path):
    (tmp_path / "a,b.tps").touch()
    sets = {
        "one": {"images": "p", "landmarks": "c.csv, d.csv"},
        "two": {"images": "q", "landmarks": str(tmp_path / "a,b.tps")},
    }
    data = ml_collections.ConfigDict({"images": "", "landmarks": "", "sets": sets})
    assert loading.inputs_of(data) == ["p", "c.csv", "d.csv", "q", str(tmp_path / "a,b.tps")]
    assert loading.inputs_of(ml_collections.ConfigDict({"volume": "v.nii", "landmarks": "l.fcsv"})) == [
        "l.fcsv",
        "v.nii",
    ]
