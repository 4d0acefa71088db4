"""Cases that once broke the property, by area: each is tried again on every run."""

from typing import Any

FOUND: dict[str, list[Any]] = {
    "clip lists": [("list.json", '[{"data": [], "video": "clip.mp4"}]')],  # no part of a clip made an empty training
    "training state": [  # two functions for one group of weights, no number of steps, no moments
        [(["optimizer", "schedules", 0, "lr_lambdas"], [None, ""])],
        [(["optimizer", "schedules", 0, "lr_lambdas"], [None, None])],
        [(["optimizer", "schedules", 0, "base_lrs"], [])],
        [(["optimizer", "optimizers", 0, "state", 0, "step"], None)],
        [(["optimizer", "optimizers", 0, "state", 0], {})],
    ],
    "conversion": [  # an expression that takes years to match
        ({"alpha_pattern": {"(a+)+$": 1}}, "ours"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "peft"),
    ],
    "checkpoint header": [
        {"config": "validation_data: {negative_prompt: '${oc.env:FUZZ_SECRET}'}"},
        {"config": "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]"},
        {"rank": "abc"},
        {"alpha": "nan"},
        {"rank": "0"},
        {"clips": "x"},
        {"config": "5"},
    ],
    "tensors": [("run", "nan", 0, False), ("embeddings", "nan", 0, False), ("cached", "inf", 1, False)],
    "model folder": [
        ("unet/config.json", "[]"),
        ("unet/config.json", '{"attention_head_dim": 0}'),
        ("scheduler/scheduler_config.json", '{"prediction_type": "x"}'),
        ("sampling.json", '{"width": "x"}'),
    ],
    "configuration": [("seed: !!timestamp 2020-99-99", []), ("", ["seed=${oc.env:FUZZ_SECRET}"]), ("[" * 5000, [])],
}
