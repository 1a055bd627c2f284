"""Variants, stages, and configs as JSON."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from experiments import resolve

from jaxmarks import config as configs
from jaxmarks import run_config, runs, tasks
from jaxmarks.data import splits

get_config = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "beetle.py"))["get_config"]


def test_variants_combine_and_errors_list_the_known_ones():
    assert get_config("smoke,part=elytra").data.part == "elytra"
    with pytest.raises(ValueError, match="smoke, own, pretrain, finetune, paper"):
        get_config("smok")
    with pytest.raises(ValueError, match="left_mandible"):
        get_config("part=wing")


def test_the_papers_protocol():
    config = get_config("paper")
    assert (config.data.size, config.train.batch_size, config.train.epochs) == ((192, 256), 128, 5000)
    assert (config.split.folds, config.split.by, config.split.valid) == (9, "random", 0.4)
    assert runs.folds(config) == list(range(9))
    # Nine folds of 293 specimens leave 260 or 261 outside the test; 260 x 7 = 1,820 rows, 60 % of them 1,092.
    samples = type("Samples", (), {"group": np.arange(293), "domain": np.zeros(293, int)})
    rows, valid, test = splits.member_split(config, samples, runs.Member(0), 7)
    assert (len(rows), len(valid), len(test)) == (1092, 728, 33)


def test_few_draws_training_specimens_by_seed_and_changes_nothing_else():
    config = get_config("")
    config.split.folds, config.split.valid = 5, 0.2
    samples = type("Samples", (), {"group": np.arange(60) // 3, "domain": np.zeros(60, int)})
    everything, found = splits.member_split(config, samples, runs.Member(0), 1), []
    config.split.few = 4
    for config.seed in (0, 1):
        split = splits.member_split(config, samples, runs.Member(0), 1)
        groups, counts = np.unique(samples.group[split[0]], return_counts=True)
        assert len(groups) == 4 and set(counts) == {3}  # whole specimens
        assert set(split[0]) < set(everything[0])
        for mine, whole in zip(split[1:], everything[1:], strict=True):
            np.testing.assert_array_equal(mine, whole)
        found.append(set(groups))
    assert found[0] != found[1]
    config.split.by = "random"
    with pytest.raises(ValueError, match=r"split\.few=4: a random split"):
        splits.member_split(config, samples, runs.Member(0), 1)


def test_side_and_min_overlap_are_not_compared_since_scale_and_overlap_derive_from_them():
    """Runs of earlier versions have neither."""
    config = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "spines.py"))["get_config"]()
    older = ml_collections.ConfigDict(config.to_dict())
    del older.data["side"], older.data["min_overlap"]
    assert configs.differences(older, config) == []
    older.data.scale = 0.5
    assert configs.differences(older, config) == ["data.scale: 0.5 / 1.0"]


@pytest.mark.parametrize("detector", ["centre", "yolo", "faster_rcnn", "sp_cnn"])
@pytest.mark.parametrize("more", ["", "own", "random", "paper", "smoke", "paper,smoke", "random,smoke"])
def test_detector_variants_combine(detector, more):
    path = Path(__file__).parent.parent / "configs" / "spines.py"
    config = runpy.run_path(str(path))["get_config"](f"{detector},{more}".strip(","))
    tasks.check(config)
    for stage in config.stages:
        tasks.sizes(configs.stage(config, stage))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 0}, r"--config\.train\.batch_size=0: it must be at least 1"),
        ({"train.ensemble": 0}, r"train\.ensemble=0: it must be at least 1"),
        ({"train.patience": -1}, r"train\.patience=-1: it must be at least 0"),
        ({"train.ema": 1.5}, r"train\.ema=1\.5: it must be from 0 to 1"),
        ({"optimizer.learning_rate": -1.0}, r"optimizer\.learning_rate=-1\.0: it must be at least 0"),
        ({"optimizer.learning_rate": float("nan")}, "learning_rate=nan"),
        ({"train.steps": 0, "train.epochs": 0}, "set one of them above 0"),
        ({"split.few": -3}, r"split\.few=-3"),
        ({"data.size": (96,)}, r"data\.size=\(96,\): give height and width"),
        ({"data.size": (96, 128, 96, 128)}, "give height and width of the frame, as one pair"),
        ({"data.size": (96.5, 128)}, "give height and width"),
        ({"data.size": (0, 128)}, "give height and width"),
        ({"data.size": (), "data.pixels": 0}, r"data\.pixels=0: it must be at least 1024"),
        ({"data.count": 0}, r"data\.count=0: it must be at least 1"),
        ({"data.sets": {"a": {"count": 0}}}, r"data\.sets\.a\.count=0: it must be at least 1"),
        ({"data": {"size": (), "images": ""}}, r"--config\.data\.size=\(\): give height and width"),
        (
            {"stages": ("one",), "stage": {"one": {"data": {"size": ()}}}},
            r"config\.stage\.one\.data\.size=\(\): give height",
        ),
        (
            {"data": {"size": (96, 128), "scale": -1.0}},
            r"config\.data\.scale=-1.0: it must be from 0.01 to 100, or 0, which adapts it to the objects$",
        ),
        ({"data": {"size": (96, 128), "scale": 0.001}}, r"config\.data\.scale=0.001: it must be from 0.01 to 100"),
        (
            {"stages": ("one",), "data": {"size": (96, 128), "scale": 1.0}, "stage": {"one": {"data": {"scale": 0.0}}}},
            r"config\.stage\.one\.data\.scale=0\.0: it must be from 0\.01 to 100$",
        ),
        (
            {"data.zoom": -1.0},
            r"config\.data\.zoom=-1\.0: it must be from 1 to 16, or 0, which adapts it to the photographs$",
        ),
        ({"data.zoom": 0.5}, r"config\.data\.zoom=0\.5: it must be from 1 to 16, or 0"),
        ({"data.zoom": 2.0, "data.sets": {"a": {}}}, r"config\.data\.zoom=2\.0: with several data\.sets"),
        (
            {"stages": ("one",), "stage": {"one": {"data": {"zoom": 0.0}}}},
            r"config\.stage\.one\.data\.zoom=0\.0: it must be from 1 to 16$",
        ),
        ({"data.share": 0.0}, r"config\.data\.share=0\.0: it must be from 0\.05 to 1"),
        ({"data.pose": "flat"}, r"config\.data\.pose=flat: choose one of upright, turned, mirrored"),
        (
            {"stages": ("one",), "stage": {"one": {"data": {"pose": ""}}}},
            r"config\.stage\.one\.data\.pose=: choose one of upright",
        ),
        ({"data.fit": "foo"}, r"config\.data\.fit=foo: choose one of pad, stretch"),
        ({"data.source_size": (0, 0)}, r"config\.data\.source_size=\[0, 0\]: it must be at least 1"),
        ({"seed": -1}, r"config\.seed=-1: it must be at least 0"),
        ({"split.seed": -1}, r"config\.split\.seed=-1: it must be at least 0"),
        ({"model.width": -1}, r"config\.model\.width=-1: it must be at least 0"),
        ({"head": {"name": "heatmap", "sigma": 0.0}}, r"head\.sigma=0.0: it must be at least 0.1"),
        ({"head": {"name": "yolo", "overlap": 1.5}}, r"head\.overlap=1.5: it must be from 0 to 1"),
        ({"split.run": (9,)}, r"split\.run=\(9,\): folds are numbered from 0 to 8"),
        ({"stages": ()}, "name at least one stage"),
        ({"stages": ("train", "train")}, "none twice"),
        ({"freeze": "(("}, r"--config\.freeze='\(\(' is not a regular expression"),
        ({"optimizer.rates": ("body/", 0.1)}, "give pairs"),
        ({"optimizer.rates": (("((", 0.1),)}, r"optimizer\.rates='\(\('"),
        ({"init_skip": "head"}, "init_skip=head: it has no effect without"),
        ({"init_from": "a", "weights": "imagenet"}, "one of them"),
        (
            {"stages": ("one",), "stage": {"one": {"train": {"accumulate": 0}}}},
            r"config\.stage\.one\.train\.accumulate=0",
        ),
        ({"split.run": ("0",)}, "folds are numbered"),
        ({"split.run": (1, 1)}, r"split\.run=\(1, 1\): folds are numbered from 0 to 8; give each"),
        ({"model": {"width": 4}}, r"--config\.model=\{'width': 4\}: the key 'name' is missing"),
        ({"optimizer": {"clip": 4.0}}, r"--config\.optimizer=\{'clip': 4\.0\}: the key 'name' is missing"),
        ({"model": {"name": "unet", "width": 0}}, r"--config\.model\.width=0: it must be at least 1"),
        ({"stages": ("one",), "stage": {"one": 3}}, r"config\.stage\.one=3: give the keys that the stage changes"),
        ({"optimizer.rates": (("body/", -1.0),)}, "give pairs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_name_the_invalid_key(changes, message):
    config = get_config("")
    configs.check(config)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        configs.check(config)


def test_the_frame_size_may_be_left_open():
    config = get_config("")
    config.data.size = ()
    configs.check(config)


def test_an_old_config_gets_defaults_of_newer_keys(tmp_path):
    config = get_config("")
    configs.save(config, tmp_path / "new.json")
    old = json.loads((tmp_path / "new.json").read_text())
    del old["split"]["few"], old["train"]["ema"], old["optimizer"]["rates"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = configs.load(tmp_path / "old.json")
    assert (found.split.few, found.train.ema) == (0, 0.0)
    assert configs.differences(found, config) == []
    config.optimizer.rates = (("body/", 0.1),)
    assert configs.differences(found, config) == ["optimizer.rates: () / (('body/', 0.1),)"]


def test_a_stage_is_the_config_with_a_few_keys_changed():
    config = get_config("finetune,paper,part=head")
    pretrain, finetune = (configs.stage(config, name) for name in ("pretrain", "finetune"))
    assert pretrain.data.part == "pronotum+elytra+head" and finetune.data.part == "head"
    assert pretrain.train.epochs == 10000 and list(finetune.optimizer.learning_rate) == [0.01, 0.01]
    assert list(pretrain.optimizer.learning_rate) == [0.03, 0.00001]
    config.stage.finetune = {"optimiser": {"name": "adam"}}
    with pytest.raises(ValueError, match="no such key"):
        configs.stage(config, "finetune")


def test_a_config_survives_json(tmp_path):
    config = get_config("smoke")
    configs.save(config, tmp_path / "config.json")
    found = configs.load(tmp_path / "config.json")
    assert configs.differences(config, found) == []
    found.train.steps = 9
    assert configs.differences(config, found) == ["train.steps: 8 / 9"]
    with pytest.raises(FileNotFoundError, match="--workdir"):
        configs.load(tmp_path / "none.json")


def test_none_in_a_runs_config_accepts_any_type(tmp_path):
    config = runpy.run_path(str(Path(__file__).parent.parent / "configs" / "spines.py"))["get_config"]()
    configs.save(config, tmp_path / "config.json")
    found = run_config.get_config(str(tmp_path))
    assert found.head.overlap is None and found.head.get_type("overlap") is config.head.get_type("overlap")


def test_a_run_that_starts_from_another_skips_pretraining():
    config = get_config("finetune")
    assert runs.stages(config) == ["pretrain", "finetune"]
    config.init_from = "runs/other"
    assert runs.stages(config) == ["finetune"]


def test_a_damaged_config_is_reported(tmp_path):
    for text in ("", '{"seed": 0', "[]", "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: the file is damaged"):
            configs.load(tmp_path / "config.json")


def test_pretraining_uses_all_drawn_beetles():
    with pytest.raises(ValueError, match="own, pretrain"):
        get_config("own,pretrain")
    config = get_config("own,finetune")
    config.split.few = 3
    assert [configs.stage(config, name).split.few for name in config.stages] == [0, 3]


def test_a_run_without_a_newer_stage_key_is_still_the_same():
    one = get_config("finetune")
    older = one.copy_and_resolve_references()
    del older.stage.pretrain["split"]
    assert configs.differences(older, one) == []
    older.split.few = 3  # without the stage's key, pretraining also used three
    assert configs.differences(older, one) == ["split.few: 3 / 0", "stage.pretrain.split.few: 3 / 0"]


def test_configs_list_their_options_and_flags_can_set_them():
    config = resolve(["--config=configs/spines.py:yolo", "--config.head.ignore=0.7", "--config.model.norm=group"])
    assert (config.head.ignore, config.head.coordinates, config.model.norm) == (0.7, 1.0, "group")
    config = resolve(["--config=configs/fish.py", "--config.model.encoder={'name': 'resnet50'}"])  # None by default
    assert configs.stage(config, "train").model.encoder.name == "resnet50" and json.loads(config.to_json())
    assert json.loads(resolve(["--config=configs/fish.py"]).to_json())["model"]["encoder"] is None
    config = resolve(["--config=configs/beetle.py", "--config.augment.quarter_turns=True", "--config.augment.blur=1"])
    assert (config.augment.quarter_turns, config.augment.blur, config.augment.rotation) == (True, 1.0, 15.0)
    assert resolve(["--config=configs/beetle.py:paper", "--config.augment.maximum=9"]).augment.maximum == 9


def test_a_run_without_a_newer_network_option_is_still_the_same():
    one = get_config("")
    older = ml_collections.ConfigDict(one.to_dict())
    del older.model["standardise"], older.head["interval"]
    assert configs.differences(older, one) == ["model.standardise: False / True"]  # the default is False
    older.model.standardise = True
    assert configs.differences(older, one) == [] == configs.differences(one, older)


@pytest.mark.parametrize("name", ["none", "paper_x7", "modern"])
def test_a_run_without_a_newer_augmentation_option_is_still_the_same(name):
    one = get_config("")
    one.augment.name = name  # as a flag does: the previous augmentation's options stay, without effect
    older = ml_collections.ConfigDict(one.to_dict())
    del older.augment["quarter_turns"]
    assert configs.differences(older, one) == [] == configs.differences(one, older)
    alone = ml_collections.ConfigDict(one.to_dict())
    alone.augment = {"name": name}
    assert configs.differences(alone, configs.complete(one)) == []
    older.augment.rotation = 3.0
    assert configs.differences(older, one) == (["augment.rotation: 3.0 / 15.0"] if name == "modern" else [])
    older.stage = one.stage = {"train": {"augment": {"name": "modern"}}}  # a stage uses these options
    assert configs.differences(older, one) == ["augment.rotation: 3.0 / 15.0"]


def test_a_users_config_may_start_from_the_default_augmentation():
    config = configs.base()
    config.augment.rotation *= 2
    assert configs.complete(config).augment.rotation == 30.0


@pytest.mark.parametrize(
    "word, said",
    [
        ("--config.train.stepz=3", '--config.train.stepz=3: the config has no such key. Did you mean "steps" '),
        ("--config=configs/fish.py:smok", "unknown config variant 'smok': choose from smoke"),
    ],
)
def test_a_command_line_typo_gives_a_one_line_message(word, said):
    found = subprocess.run([sys.executable, "-m", "jaxmarks.main", word], capture_output=True, text=True)
    assert found.returncode and found.stderr.startswith(f"jaxmarks: {said}") and found.stderr.count("\n") == 1


@pytest.mark.parametrize("mistake", ["len(3)", "text.nosuch"])
def test_a_bug_in_a_users_config_is_shown_with_its_line(tmp_path, mistake):
    (tmp_path / "mine.py").write_text(f"def get_config(text=''):\n    return {mistake}\n")
    command = [sys.executable, "-m", "jaxmarks.main", f"--config={tmp_path / 'mine.py'}"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode and 'mine.py", line 2, in get_config' in found.stderr
