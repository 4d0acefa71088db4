"""Words that a model with a small vocabulary has never seen: it draws something for them all the same."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

SMALL = 1000  # tokens; PocketScope has 380, its transformer 69, CLIP 49,408
WORD = re.compile(r"(?<![\w'’])[^\W\d_]+(?!\w)")  # whole ones: neither the d of "3d" nor the s of "circle's"


def unknown_words(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]) -> list[str]:
    """The words of `prompts`, each once and in their order, that are no token of a small vocabulary as a whole.

    Empty for a large vocabulary, which spells every word out of pieces that it has seen.
    """
    if len(tokenizer) >= SMALL:
        return []
    words = dict.fromkeys(word.lower() for prompt in prompts for word in WORD.findall(prompt))
    return [word for word in words if not _is_token(tokenizer, word)]


def _is_token(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    pieces = tokenizer.tokenize(word)
    return len(pieces) == 1 and pieces[0] != tokenizer.unk_token
