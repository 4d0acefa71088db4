"""The cache: reused while nothing changes, made anew when anything does, never half-written; reads the release's."""

import dataclasses
import pickle
import random
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from configs import files
from configs.errors import UserError
from configs.signals import Terminated
from data import cache
from data.clips import Clip
from models.files import release


@pytest.fixture
def clip():
    frames = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Clip(frames, "a ramp", "ramp", 8.0)


class Encoders:
    """Counts how often each encoder runs."""

    def __init__(self):
        self.calls = []

    def video(self, frames):
        self.calls.append("video")
        return frames.float().mean((2, 3)).T[None, :, :, None, None].half()  # [1 c f 1 1]

    def text(self, prompt):
        self.calls.append("text")
        return torch.full((1, 2, 3), len(prompt), dtype=torch.half)

    def invert(self, latents):
        self.calls.append("invert")
        return -latents

    def build(self, clips, folder, **parts):
        return cache.build(
            clips,
            folder,
            key_parts={"weights": "w", **parts},
            encode_video=self.video,
            encode_text=self.text,
            invert=self.invert,
        )


def test_a_second_run_reads_what_the_first_computed(clip, tmp_path):
    encoders = Encoders()
    (first,) = encoders.build([clip], tmp_path)
    (second,) = encoders.build([clip], tmp_path)
    assert encoders.calls == ["video", "invert", "text"]
    assert second.latents.dtype == torch.float32
    assert (second.prompt, second.name) == ("a ramp", "ramp")
    for name in ("latents", "text", "inversion"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("change", ["frame", "prompt", "geometry", "weights", "inversion"])
def test_anything_it_depends_on_makes_it_anew(clip, tmp_path, change):
    encoders, parts, invert = Encoders(), {}, True
    encoders.build([clip], tmp_path)
    if change == "frame":
        pixels = clip.frames.clone()
        pixels[0, 0, 0, 0] += 1
        clip = dataclasses.replace(clip, frames=pixels)
    elif change == "prompt":
        clip = dataclasses.replace(clip, prompt="another")
    elif change == "geometry":
        clip = dataclasses.replace(clip, frames=clip.frames.reshape(4, 3, 8, 32))
    elif change == "weights":
        parts = {"weights": "v"}
    else:
        invert = False
    rebuilt = cache.build(
        [clip],
        tmp_path,
        key_parts={"weights": "w", **parts},
        encode_video=encoders.video,
        encode_text=encoders.text,
        invert=encoders.invert if invert else None,
    )
    assert encoders.calls.count("video") == 2
    assert (rebuilt[0].inversion is not None) == invert


def test_a_damaged_entry_is_made_anew(clip, tmp_path):
    encoders = Encoders()
    encoders.build([clip], tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    encoders.build([clip], tmp_path)
    assert encoders.calls.count("video") == 2
    assert cache.read_cached(entry).prompt == "a ramp"


def test_nothing_half_written_is_left_behind(clip, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save", fail)
    with pytest.raises(OSError, match="No space"):
        Encoders().build([clip], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_run_folder_reads_back_in_order(clip, tmp_path):
    clips = [dataclasses.replace(clip, prompt=str(number)) for number in range(11)]
    cache.export_clips(Encoders().build(clips, tmp_path / "cache"), tmp_path)
    assert [cached.prompt for cached in cache.read_folder(tmp_path / "cached_latents")] == [
        clip.prompt for clip in clips
    ]
    with pytest.raises(UserError, match="no cached clips"):
        cache.read_folder(tmp_path)


def test_the_releases_files_are_read_without_running_anything(tmp_path):
    latents = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.save(
        {
            "latents": latents,
            "inversion_noise": -latents,
            "text_prompt": "a car",
            "prompt_ids": torch.zeros(77).long(),
            "pixel_values": torch.zeros(2, 3, 24, 24),
            "dataset": "single_video",
        },
        tmp_path / "cached_0.pt",
    )
    (cached,) = cache.read_folder(tmp_path)
    assert torch.equal(cached.latents, latents[None])
    assert torch.equal(cached.inversion, -latents[None])
    assert (cached.prompt, cached.text) == ("a car", None)


class Trap:
    def __reduce__(self):
        return open, ("trap-was-run", "w")


def test_a_pickle_that_tries_to_execute_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cached_0.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"latents": Trap()}, tmp_path / "cached_1.pt")
    for name in ("cached_0.pt", "cached_1.pt"):
        with pytest.raises(UserError, match="nothing in it was run"):
            cache.read_cached(tmp_path / name)
    assert not (tmp_path / "trap-was-run").exists()


def content(**changes):
    latents = torch.ones(4, 2, 3, 3)
    return {"latents": latents, "inversion_noise": -latents, "text_prompt": "a car"} | changes


@pytest.mark.parametrize("changes", [
    {"inversion_noise": [1, 2]}, {"inversion_noise": torch.ones(4, 1, 3, 3)}, {"latents": [0.5]},
    {"latents": torch.ones(3)}, {"latents": torch.ones(2, 4, 2, 3, 3)}, {"latents": torch.ones(4, 2, 3, 3) * 1j},
])  # fmt: skip
def test_a_cached_clip_of_the_wrong_kind_is_one_sentence(changes, tmp_path):
    torch.save(content(**changes), tmp_path / "cached_0.pt")
    with pytest.raises(UserError, match="cached_0.pt"):
        cache.read_cached(tmp_path / "cached_0.pt")


@pytest.mark.parametrize("kind", ["release", "release, 2019", "ours", "adapter", "adapter, 2019"])
def test_damage_of_any_kind_is_noticed_or_harmless(kind, clip, tmp_path):
    matrices, old = [torch.randn(3, 2), torch.randn(2, 3)], kind.endswith("2019")
    path = tmp_path / ("cached_0.safetensors" if kind == "ours" else "cached_0.pt")
    if kind == "ours":
        cache.write_cached(Encoders().build([clip], tmp_path / "cache")[0], path)
    else:
        torch.save(matrices if kind.startswith("adapter") else content(), path, _use_new_zipfile_serialization=not old)
    read = release.read_list if kind.startswith("adapter") else cache.read_cached
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for number in range(200):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(draw.choice((1, 3, 10)) if number % 3 and damaged else 0):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read(path)
        except UserError:
            refused += 1
    assert refused > 60


def test_clips_cached_with_another_model_are_refused(clip, tmp_path):
    (cached,) = Encoders().build([clip], tmp_path)  # 3 channels, text width 3
    cache.check_clips_fit([cached, dataclasses.replace(cached, text=None)], 3, 3)
    for fit in ((4, 3), (3, 1024)):
        with pytest.raises(UserError, match="another model"):
            cache.check_clips_fit([cached], *fit)


def rewritten(path, **changes):
    """Replace tensors or header texts of a cache file; None takes one out."""
    with safe_open(path, "pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    for name, value in changes.items():
        place = header if isinstance(value, str) else tensors
        place[name] = value(tensors[name]) if callable(value) else value
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata=header)


@pytest.mark.parametrize("changes", [
    {"latents": lambda t: t * float("nan")}, {"inversion": lambda t: t / 0}, {"text": lambda t: t * float("inf")},
    {"latents": lambda t: t.to(torch.complex64)}, {"latents": lambda t: t[:, :0]}, {"text": lambda t: t[0]},
    {"text": None}, {"latents": None}, {"inversion": lambda t: t[:, :, :1].contiguous()}, {"size": "[16]"},
    {"size": "[0, 16]"}, {"size": "[16, 17.5]"}, {"size": "x"}, {"size": "[16, 8]"}, {"size": "[" * 5000},
])  # fmt: skip
def test_a_cache_entry_of_ours_is_checked_before_it_is_believed(changes, clip, tmp_path):
    (path,) = written(clip, tmp_path)
    latents = torch.ones(1, 3, 4, 2, 2)
    cache.write_cached(cache.CachedClip(latents, torch.ones(1, 2, 3), -latents, "a", "a", (16, 16)), path)
    assert cache.read_cached(path).size == (16, 16)
    rewritten(path, **changes)
    with pytest.raises(UserError, match=path.stem):
        cache.read_cached(path)


def written(clip, folder):
    Encoders().build([clip], folder)
    return list(folder.iterdir())


def test_an_entry_of_another_precision_is_read_in_fp32(tmp_path):
    latents, text = torch.ones(1, 3, 4, 2, 2, dtype=torch.float64), torch.ones(1, 2, 3, dtype=torch.float16)
    cache.write_cached(cache.CachedClip(latents, text, -latents, "a", "a"), tmp_path / "cached_0.safetensors")
    (found,) = cache.read_folder(tmp_path)
    assert {found.latents.dtype, found.text.dtype, found.inversion.dtype} == {torch.float32}


def test_the_size_that_a_clip_was_cut_to_is_kept_with_it(clip, tmp_path):
    wide = dataclasses.replace(clip, frames=clip.frames.reshape(4, 3, 8, 32))
    (path,) = written(wide, tmp_path)
    latents = torch.ones(1, 3, 4, 1, 4)
    cache.write_cached(cache.CachedClip(latents, torch.ones(1, 2, 3), None, "a", "a", (32, 8)), path)
    assert cache.read_cached(path).size == (32, 8)
    cache.write_cached(cache.CachedClip(latents, torch.ones(1, 2, 3), None, "a", "a"), path)
    assert cache.read_cached(path).size is None  # as in files of before


@pytest.mark.parametrize("changes", [
    {"latents": torch.ones(1, 1, 1, 1).expand(4, 2**20, 2**10, 2**10)},
    {"latents": torch.full((4, 2, 3, 3), float("nan"))},
    {"latents": torch.ones(4, 2, 3, 3).to_sparse()}, {"latents": torch.ones(4, 2, 3, 3, device="meta")},
    {"text_prompt": 5}, {"text_prompt": []}, {"latents": torch.ones(4, 2, 3, 3, dtype=torch.int32)},
])  # fmt: skip
def test_latents_of_the_release_that_the_file_does_not_hold_are_refused(changes, tmp_path):
    torch.save(content(**changes), tmp_path / "cached_0.pt")
    with pytest.raises(UserError, match="cached_0.pt"):
        cache.read_cached(tmp_path / "cached_0.pt")


def pickled(path, opcodes):
    """A file of torch.save's layout whose pickle is `opcodes`."""
    torch.save([1], path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, opcodes if name.endswith("data.pkl") else data)


def test_tuples_nested_in_each_other_are_refused_before_they_are_hashed(tmp_path):
    """Forty levels of (t, t) as the key of a dict: 300 bytes that would be hashed for hours."""
    levels = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 60))
    pickled(tmp_path / "cached_0.pt", b"\x80\x02}q\x00K\x00\x85q\x01" + levels + b"h\x00h\x3cK\x01s.")
    for read in (cache.read_cached, release.read_list):
        with pytest.raises(UserError, match="nests tuples"):
            read(tmp_path / "cached_0.pt")


def test_compressed_files_and_endless_pickles_are_refused_unopened(tmp_path, monkeypatch):
    torch.save(content(), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as archive,
        zipfile.ZipFile(tmp_path / "cached_0.pt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for entry in archive.infolist():
            deflated.writestr(entry.filename, archive.read(entry))
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(UserError, match="compressed"):
        cache.read_cached(tmp_path / "cached_0.pt")
    pickled_bytes = b"\x80\x02]" + b"K\x00a" * 6_000_000 + b"."
    monkeypatch.undo()
    pickled(tmp_path / "cached_0.pt", pickled_bytes)
    with pytest.raises(UserError, match="more than are read"):
        cache.read_cached(tmp_path / "cached_0.pt")


def test_what_a_killed_run_left_in_the_cache_is_swept_by_the_next(clip, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leftover = tmp_path / f".abc.{files._place()}-{process.pid}.part.safetensors"
    leftover.touch()
    Encoders().build([clip], tmp_path)
    assert not leftover.exists() and len(list(tmp_path.iterdir())) == 1


def test_nothing_that_the_next_run_would_not_sweep_is_there_while_an_entry_is_written(clip, tmp_path):
    """Every file that the write opens is the entry's .part: a hidden one of a library's own would stay for ever."""
    before = threading.Event()
    opened, place = [], str(tmp_path)
    sys.addaudithook(lambda name, given: opened.append(given[0]) if name == "open" and not before.is_set() else None)
    Encoders().build([clip], tmp_path)
    before.set()
    inside = [str(path) for path in opened if str(path).startswith(place)]
    assert inside and all(files.LEFTOVER.fullmatch(path.rsplit("/", 1)[1]) for path in inside)


def test_what_is_encoded_stays_when_the_rest_is_interrupted(clip, tmp_path):
    encoders = Encoders()
    encoders.text = lambda prompt: (_ for _ in ()).throw(Terminated) if prompt == "stop" else torch.ones(1, 2, 3)
    with pytest.raises(Terminated):
        encoders.build([clip, dataclasses.replace(clip, prompt="stop")], tmp_path)
    (entry,) = tmp_path.iterdir()
    assert cache.read_cached(entry).prompt == "a ramp"
