"""What people ask with: configurations, key=value words, flags, prompts, lists of clips, folders of samples."""

import json

import torch
from hypothesis import strategies as st

from configs import schema
from configs.fields import KEYS, SECTIONS
from configs.plain import read_yaml
from data.sources import load_clips
from infer import options, pictures, video
from infer.jobs import read_jobs
from infer.measure.evaluation import find_samples
from infer.request import read_request
from scripts.fuzzing.ground import Ground
from scripts.fuzzing.values import changes, json_text, numbers, texts, values

key_names = st.one_of(st.sampled_from([*KEYS, *SECTIONS]), texts)
words = st.lists(st.tuples(key_names, texts).map(lambda pair: "=".join(pair)) | texts, max_size=3)
sections = st.dictionaries(st.sampled_from(sorted(SECTIONS)), st.dictionaries(texts, values, max_size=2), max_size=2)
files = st.one_of(st.dictionaries(key_names, values, max_size=4).map(json.dumps), sections.map(json.dumps), texts)
configurations = st.tuples(files, words)


def configuration(ground: Ground, case: tuple[str, list[str]]) -> None:
    text, words = case
    file = ground.inputs() / "config.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    given = [word for word in words if word not in ("--help", "-h")]
    clip = f"train_data.single_video_path={ground.whole / 'clip.mp4'}"
    cfg, _ = schema.load([f"--config={file}", clip, *given], description="fuzz")
    assert schema.from_dict(read_yaml(schema.to_yaml(cfg))) == cfg


entry_keys = st.sampled_from(["video", "path", "prompt", "text", "data", "frame_index"]) | texts
entries = st.lists(st.dictionaries(entry_keys, values, max_size=4), max_size=3)
clip_cases = st.tuples(
    st.sampled_from(["list.json", "metadata.jsonl", "metadata.csv", "clip.txt"]),
    json_text(entries | changes(video=texts, prompt=texts, data=entries).map(lambda d: [d | {"video": "clip.mp4"}])),
)


def clip_lists(ground: Ground, case: tuple[str, str]) -> None:
    name, text = case
    folder = ground.copy("clip.mp4").parent
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    asked = {"json_path": str(folder / name)} if name == "list.json" else {"path": str(folder), "fallback_prompt": "x"}
    kind = "json" if name == "list.json" else "folder"
    data = {"width": 16, "height": 16, "n_sample_frames": 2, **asked}
    clips = load_clips(schema.from_dict({"dataset_types": [kind], "train_data": data}), 8)
    assert clips and all(clip.frames.dtype == torch.uint8 and clip.prompt for clip in clips)


def prompts(ground: Ground, case: str) -> None:
    args = options.parse(["--prompt", case, "--model", "x", "--output_dir", str(ground.out)])
    ((prompt, _),) = read_jobs(args)
    path = ground.out / f"{video.safe_name(prompt)}.gif"
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    video.write_video(path, frames, fps=8)
    pictures.contact_sheet(ground.out / "sheet.png", [(prompt, pictures.strip(frames))])
    assert path.parent == ground.out and path.is_file()


FLAGS = [
    "--width", "--num-frames", "--num-steps", "--guidance-scale", "--seed", "--noise_prior", "--beta", "--repeat_num",
    "--freeu", "--clip", "--lora_scale", "--motion", "--fps", "--quality", "--batch-size", "--checkpoint_index",
    "--solver",
]  # fmt: skip
flag_cases = st.lists(st.tuples(st.sampled_from(FLAGS), st.one_of(texts, numbers.map(str))), min_size=1, max_size=3)


def flags(ground: Ground, case: list[tuple[str, str]]) -> None:
    words = [word for pair in case for word in pair if word not in ("--help", "-h")]
    run, model = ground.whole / "run", ground.model
    fixed = ["--checkpoint_folder", str(run), "--prompt", "x", "--model", model, "--output_dir", str(ground.out)]
    args = options.parse([*fixed, *words])
    jobs = read_jobs(args)
    request = read_request(args)
    assert jobs and all(0 <= seed < 2**64 for _, seed in jobs) and request.settings.num_frames >= 1


def sidecars(ground: Ground, case: str) -> None:
    folder = ground.copy("clip.mp4").parent
    (folder / "clip.json").write_bytes(case.encode("utf-8", "surrogatepass"))
    samples, problems = find_samples(folder)
    assert len(samples) + len(problems) == 1 and all(isinstance(s.sidecar["prompt"], str) for s in samples)


sidecar_cases = json_text(changes(prompt=texts, seed=numbers, config=values))
