"""Words that a small model does not know are told; a large vocabulary spells every word."""

import pytest
from transformers import AutoTokenizer

from models import vocabulary
from models.vocabulary import unknown_words
from scripts.artefacts.testbed import prompt_list

from conftest import ROOT

MODELS = ("pocketscope", "pocketscope_dit")


@pytest.fixture(params=MODELS)
def tokenizer(request):
    return AutoTokenizer.from_pretrained(ROOT / "models" / request.param / "tokenizer")


def test_words_that_no_clip_of_the_toy_world_has_are_named_once(tokenizer):
    prompts = ["An astronaut rides a blue horse.", "a grüner circle, 2 horses and a horse", "a circle's 3d"]
    assert unknown_words(tokenizer, prompts) == ["astronaut", "rides", "horse", "grüner", "horses"]


def test_every_shipped_prompt_is_known(tokenizer):
    for name in ("pocket.txt", "pocket_paths.txt"):
        assert unknown_words(tokenizer, prompt_list(name)) == []


def test_a_large_vocabulary_knows_every_word(tokenizer, monkeypatch):
    monkeypatch.setattr(vocabulary, "SMALL", len(tokenizer))
    assert unknown_words(tokenizer, ["an astronaut"]) == []


def test_a_request_tells_of_them(tmp_path, capsys):
    from infer import options
    from infer.generate import generate

    words = ["--model", str(ROOT / "models/pocketscope"), "--prompt", "an astronaut", "--num-steps", "1"]
    list(generate(options.parse([*words, "--output_dir", str(tmp_path), "--device", "cpu"])))
    told = capsys.readouterr().err
    assert "note: this small model does not know 'astronaut'; its card lists its words\n" in told
    assert "a CPU computes in fp32, so precision fp16 does nothing here" in told
