"""Files over files: a base below the file that names it, a fallback over it, and which of them a model survives."""

from pathlib import Path

import pytest

from configs import schema
from configs.errors import UserError
from configs.paths import download_of, is_hub_id
from models.backbone import check_folder

ROOT = Path(__file__).resolve().parents[1]
HUB = "cerspense/zeroscope_v2_576w"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


def load(*files: str, words: tuple[str, ...] = ("train_data.single_video_path=a",)):
    argv = [word for file in files for word in ("--config", file)]
    return schema.load([*argv, *words], description="test")[0]


@pytest.fixture
def small(tmp_path):
    return write(tmp_path, "small.yaml", "pretrained_model_path: tiny\nlora_rank: 2\nlearning_rate: 0.1\n")


@pytest.fixture
def big(tmp_path, small):
    """A file whose model folder is missing and whose fallback stands beside it."""
    return write(tmp_path, "big.yaml", "pretrained_model_path: ./big/\nfallback: small.yaml\nlora_rank: 64\n")


# ---- base ----


def test_a_file_changes_what_its_base_says(tmp_path):
    write(tmp_path, "deepest.yaml", "lora_rank: 1\nseed: 1\nmax_train_steps: 1\ntrain_data: {fps: 1, width: 64}\n")
    write(tmp_path, "deep.yaml", "base: deepest.yaml\nlora_rank: 2\nseed: 2\ntrain_data: {fps: 2}\n")
    top = write(tmp_path, "top.yaml", "base: deep.yaml\nlora_rank: 3\n")
    cfg = load(top)
    assert (cfg.lora_rank, cfg.seed, cfg.max_train_steps) == (3, 2, 1)
    assert (cfg.train_data.fps, cfg.train_data.width) == (2, 64)
    assert cfg.base is None, "what a base said is in the configuration, which needs its file no more"
    assert {"max_train_steps", "seed", "train_data.fps"} <= set(cfg.chosen), "somebody wrote them"


def test_a_base_is_found_beside_its_file_and_else_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "inner/own.yaml", "lora_rank: 7\n")
    assert load(write(tmp_path, "inner/a.yaml", "base: own.yaml\n")).lora_rank == 7
    assert load(write(tmp_path, "inner/b.yaml", "base: configs/pocket.yaml\n")).timesteps_per_step == 4
    write(tmp_path, "inner/configs/pocket.yaml", "lora_rank: 9\n")
    assert load(str(tmp_path / "inner/b.yaml")).lora_rank == 9


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("base: a.yaml", "circle.*a.yaml -> a.yaml"),
        ("base: b.yaml", "circle.*a.yaml -> b.yaml -> a.yaml"),
        ("base: missing.yaml", "missing.yaml: no such configuration file"),
        ("base: pocet.yaml", "no such configuration file"),
        ("base: [a.yaml]", "is no file name"),
        ("base: 3", "is no file name"),
        ('base: "a\\0b"', "NUL|no text"),
        ("base: list.yaml", "in place of keys and values"),
        (f"base: {'x' * 5000}", "no such configuration file"),
        ("base: .", "folder"),
    ],
)
def test_bases_that_cannot_be_read_are_a_sentence(tmp_path, text, printed):
    write(tmp_path, "b.yaml", "base: a.yaml\n")
    write(tmp_path, "list.yaml", "- a\n")
    with pytest.raises(UserError, match=f"a.yaml.*({printed})") as caught:
        load(write(tmp_path, "a.yaml", text + "\n"))
    assert len(str(caught.value)) < 700


def test_bases_without_end_are_a_sentence(tmp_path):
    for i in range(40):
        write(tmp_path, f"{i}.yaml", f"base: {i + 1}.yaml\n")
    with pytest.raises(UserError, match="base"):
        load(str(tmp_path / "0.yaml"))


def test_a_base_belongs_into_a_file():
    with pytest.raises(UserError, match="base: only a file has one"):
        load(words=("base=configs/pocket.yaml", "train_data.single_video_path=a"))
    with pytest.raises(UserError, match="base: only a file has one"):
        schema.from_dict({"base": "configs/pocket.yaml", "train_data": {"single_video_path": "a"}})


def test_the_pocket_recipe_stands_in_one_place():
    shared = ("learning_rate", "max_train_steps", "min_timestep", "lora_unet_dropout")
    for name in ("configs/quickstart.yaml", "configs/reproduce/pocket.yaml"):
        text = (ROOT / name).read_text()
        assert "base: configs/pocket.yaml" in text and not any(f"\n{key}:" in text for key in shared)
    quick, repeated = load("configs/quickstart.yaml", words=()), load("configs/reproduce/pocket.yaml")
    pocket = load("configs/pocket.yaml")
    assert all(cfg[key] == pocket[key] for key in shared for cfg in (quick, repeated))
    # what differs on purpose
    assert [cfg.train_data.fps for cfg in (pocket, quick, repeated)] == [4, 8, 0]
    assert [cfg.inversion_steps for cfg in (pocket, quick, repeated)] == [25, 25, 50]
    assert [cfg.timesteps_per_step for cfg in (pocket, quick, repeated)] == [4, 2, 4]
    assert [cfg.appearance_highway.use for cfg in (pocket, quick, repeated)] == ["sampling", "off", "off"]


# ---- fallback ----


def test_a_fallback_that_cannot_be_read_is_told_alone(tmp_path):
    with pytest.raises(UserError) as told:
        load(write(tmp_path, "big.yaml", "pretrained_model_path: ./big/\nfallback: nowhere.yaml"), words=())
    assert "nowhere.yaml: no such configuration file" in str(told.value)
    assert "single_video_path" not in str(told.value)


def test_a_missing_published_model_comes_with_the_command_that_gets_it(tmp_path, capsys):
    small = write(tmp_path, "small.yaml", "pretrained_model_path: tiny")
    here = tmp_path / "zeroscope_v2_576w"
    load(write(tmp_path, "big.yaml", f"pretrained_model_path: {here}/\nfallback: {small}"))
    assert f"`hf download {HUB} --local-dir {here}` gets the real model" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"`hf download {HUB} --local-dir .*` downloads this one"):
        check_folder(str(here))
    assert download_of("models/another") is None


def test_a_clip_of_ones_own_does_not_get_the_caption_of_the_files_clip(tmp_path, capsys):
    car = write(tmp_path, "car.yaml", "train_data: {single_video_path: car.mp4, single_video_prompt: a car}")
    clip, caption = "train_data.single_video_path=mine.mp4", "train_data.single_video_prompt=a boat"
    cfg = load(car, words=(clip,))
    assert cfg.train_data.single_video_prompt == "" and "train_data.single_video_prompt" not in cfg.chosen
    assert "command line names another clip, so the caption 'a car' is left out" in capsys.readouterr().err
    assert load(car, words=(clip, caption)).train_data.single_video_prompt == "a boat"
    for same in ("car.mp4", "./car.mp4", str(Path("car.mp4").absolute())):
        assert load(car, words=(f"train_data.single_video_path={same}",)).train_data.single_video_prompt == "a car"
    words = write(tmp_path, "words.yaml", "train_data: {single_video_prompt: a train}")
    later = write(tmp_path, "clip.yaml", "train_data: {single_video_path: mine.mp4}")
    assert load(words, later, words=()).train_data.single_video_prompt == "a train", "it was of no other clip"
    assert load(car, words=(caption,)).train_data.single_video_path == "car.mp4"
    assert capsys.readouterr().err == ""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert load(car, words=(f"train_data.single_video_path={tmp_path}/loop",)).train_data.single_video_prompt == ""


def test_what_a_file_that_is_missing_would_have_said_is_not_asked_for(tmp_path):
    with pytest.raises(UserError) as told:
        load(str(tmp_path / "car.yml"), words=("sed=1",))
    assert "no such configuration file" in str(told.value) and "sed: unknown key" in str(told.value)
    assert "single_video_path" not in str(told.value)


def test_a_fallback_stands_in_for_the_missing_model_of_its_own_file(tmp_path, big, capsys):
    cfg = load(big)
    assert (cfg.pretrained_model_path, cfg.lora_rank) == ("tiny", 2)
    assert "falling back to small.yaml: a toy model" in capsys.readouterr().err
    assert {"lora_rank", "learning_rate"} <= set(cfg.chosen), "somebody wrote them"


def test_a_model_that_exists_is_kept(tmp_path, big, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").mkdir()
    assert load(big).lora_rank == 64


@pytest.mark.parametrize("model", [HUB, "./elsewhere", "/no/such/folder"])
def test_a_model_that_another_file_names_is_kept_with_its_own_recipe(tmp_path, big, model, capsys):
    mine = write(tmp_path, "mine.yaml", f"pretrained_model_path: {model}\n")
    cfg = load(big, mine)
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.learning_rate) == (model, 64, 5e-4)
    assert not capsys.readouterr().err


def test_a_hub_id_is_never_replaced(tmp_path, small, capsys):
    cfg = load(write(tmp_path, "car.yaml", f"pretrained_model_path: {HUB}\nfallback: small.yaml\nlora_rank: 64\n"))
    assert (cfg.pretrained_model_path, cfg.lora_rank) == (HUB, 64)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("model", [HUB, "./nowhere", "nowhere", "a/b/c", "models/none", "~/none", "configs/x", "/a"])
def test_a_hub_id_is_what_the_backbone_takes_for_one(model, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        check_folder(model)
        accepted = True
    except UserError:
        accepted = False
    assert is_hub_id(model) == accepted


def test_a_model_on_the_command_line_is_never_replaced(big):
    cfg = load(big, words=("pretrained_model_path=./big/", "train_data.single_video_path=a"))
    assert (cfg.pretrained_model_path, cfg.lora_rank) == ("./big/", 64)


def test_null_on_the_command_line_turns_the_fallback_off(big):
    cfg = load(big, words=("fallback=null", "train_data.single_video_path=a"))
    assert (cfg.pretrained_model_path, cfg.lora_rank) == ("./big/", 64)
    with pytest.raises(UserError, match="fallback: only null"):
        load(big, words=("fallback=configs/pocket.yaml", "train_data.single_video_path=a"))


def test_files_that_give_no_model_keep_the_fallback_and_win_over_it(tmp_path, big):
    cfg = load(big, write(tmp_path, "method.yaml", "learning_rate: 0.2\n"))
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.learning_rate) == ("tiny", 2, 0.2)


def test_a_later_file_with_the_same_missing_model_does_not_put_it_under_the_small_recipe(tmp_path, big):
    cfg = load(big, write(tmp_path, "again.yaml", "pretrained_model_path: ./big\nlearning_rate: 0.2\n"))
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.learning_rate) == ("tiny", 2, 0.2)


def test_a_fallback_beside_no_model_does_not_replace_that_of_another_file(tmp_path, small):
    first = write(tmp_path, "first.yaml", "pretrained_model_path: ./mine\nlora_rank: 64\n")
    cfg = load(first, write(tmp_path, "second.yaml", "fallback: small.yaml\n"))
    assert (cfg.pretrained_model_path, cfg.lora_rank) == ("./mine", 64)
    assert load(str(tmp_path / "second.yaml")).pretrained_model_path == "tiny", "here it stands in for the default"


def test_only_the_fallback_of_the_model_in_force_is_merged(tmp_path, big):
    write(tmp_path, "other_small.yaml", "pretrained_model_path: other\nlora_alpha: 5\n")
    other = write(tmp_path, "other.yaml", "pretrained_model_path: ./other_big\nfallback: other_small.yaml\n")
    cfg = load(big, other)
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.lora_alpha) == ("other", 64, 5)


def test_the_fallback_of_a_base_is_for_the_model_of_that_base(tmp_path, big):
    kept = write(tmp_path, "kept.yaml", "base: big.yaml\npretrained_model_path: ./mine\n")
    assert (load(kept).pretrained_model_path, load(kept).lora_rank) == ("./mine", 64)
    taken = write(tmp_path, "taken.yaml", "base: big.yaml\nlearning_rate: 0.2\n")
    assert (load(taken).pretrained_model_path, load(taken).learning_rate) == ("tiny", 0.2)


def test_a_fallback_without_a_model_of_its_own_is_a_sentence(tmp_path):
    write(tmp_path, "small.yaml", "lora_rank: 2\n")
    with pytest.raises(UserError, match="small.yaml: gives no pretrained_model_path"):
        load(write(tmp_path, "big.yaml", "pretrained_model_path: ./big\nfallback: small.yaml\n"))


def test_a_missing_fallback_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="big.yaml: fallback: none.yaml: no such configuration file"):
        load(write(tmp_path, "big.yaml", "pretrained_model_path: ./big\nfallback: none.yaml\n"))


def test_the_name_of_a_file_far_down_is_seen_in_messages(tmp_path):
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    (folder / "wrong.yaml").write_text("- seed\n")
    with pytest.raises(UserError, match="wrong.yaml: holds a list"):
        load(str(folder / "wrong.yaml"))
