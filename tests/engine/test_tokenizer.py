"""Tokenizers against transformers' own decoding, and the built-in one against any Unicode."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.byte_pair import train
from engine.request import RequestError
from engine.tokenizer import HFTokenizer, TokenizerError, builtin_tokenizer, load_tokenizer

UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
WORDS = st.lists(st.sampled_from(["the", " ", "  ", "\n", "naïve", "日本", "🙂", "▁", "<s>", "<0x41>", "1", "é"])).map(
    "".join
)
TEXT = st.one_of(UNICODE, WORDS)
EXAMPLES = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="session")
def tinyllama(data_dir: Path) -> HFTokenizer:
    return load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")


@pytest.fixture(scope="session")
def stories(models_dir: Path) -> HFTokenizer:
    return load_tokenizer(models_dir / "stories260k")


@pytest.fixture(scope="session")
def gpt2_folder(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary as a folder that `save_pretrained` would write."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocab = json.loads((data_dir / "tokenizers" / "gpt2_encoder.json").read_text())
    lines = (data_dir / "tokenizers" / "gpt2_vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    fast = Fast(models.BPE(vocab, [tuple(line.split()) for line in lines]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.enable_truncation(8)
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|endoftext|>").save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [50256, 198]}))
    return folder


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> HFTokenizer:
    return load_tokenizer(gpt2_folder)


@pytest.fixture(scope="session", params=["tinyllama", "stories", "gpt2"])
def published(request: pytest.FixtureRequest) -> HFTokenizer:
    return request.getfixturevalue(request.param)


@EXAMPLES
@given(text=TEXT)
def test_the_builtin_tokenizer_gives_any_text_back(text: str) -> None:
    tokenizer = builtin_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids.intersection(ids), "special tokens are never read from text"
    assert all(0 <= i < 512 for i in ids)
    assert tokenizer.encode(text) == [1, *ids]


def test_the_builtin_tokenizer_fits_the_tiny_model_and_compresses_real_text(data_dir: Path) -> None:
    tokenizer = builtin_tokenizer()
    assert tokenizer.vocab_size == 512
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
    assert len({tokenizer.token_bytes(i) for i in range(3, 512)}) == 509, "each token has bytes of its own"
    with gzip.open(data_dir / "text_corpora" / "tinyshakespeare.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()[:50_000]
    assert len(tokenizer.encode(text)) < len(text.encode()) / 1.5


def test_builtin_merges_are_the_ones_that_training_gives_again() -> None:
    builtin_tokenizer.cache_clear()
    first = builtin_tokenizer()
    builtin_tokenizer.cache_clear()
    second = builtin_tokenizer()
    assert first is not second
    assert [first.token_bytes(i) for i in range(512)] == [second.token_bytes(i) for i in range(512)]


def test_training_merges_the_most_frequent_pair_first_and_says_when_the_text_is_too_short() -> None:
    assert train("abab abab", 2) == ((97, 98), (256, 256))
    with pytest.raises(ValueError, match="train on more text"):
        train("abc", 1)


def test_a_long_run_without_spaces_is_encoded_in_the_end() -> None:
    text = "the" * 20_000
    assert builtin_tokenizer().decode(builtin_tokenizer().encode(text)) == text


@EXAMPLES
@given(text=TEXT)
def test_decoding_is_transformers(published: HFTokenizer, text: str) -> None:
    ids = published.encode(text)
    assert published.decode(ids) == published._fast.decode(ids, skip_special_tokens=True)


@EXAMPLES
@given(data=st.data())
def test_decoding_random_tokens_is_transformers_where_they_are_utf8(
    published: HFTokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, published.vocab_size - 1), max_size=12))
    text = published.decode(ids)
    if "\ufffd" not in text:
        assert text == published._fast.decode(ids, skip_special_tokens=True)


def test_encoding_is_transformers_in_full_length(
    stories: HFTokenizer, models_dir: Path, gpt2: HFTokenizer, gpt2_folder: Path
) -> None:
    text = "Once upon a time, there was a café </s> in 東京.\n" * 40
    for ours, folder in [(stories, models_dir / "stories260k"), (gpt2, gpt2_folder)]:
        theirs = AutoTokenizer.from_pretrained(folder)
        assert ours.encode(text) == theirs(text, truncation=False)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.vocab_size == len(theirs)


def test_special_tokens_come_from_the_folder_or_by_their_usual_names(
    stories: HFTokenizer, tinyllama: HFTokenizer, gpt2: HFTokenizer
) -> None:
    assert (stories.bos_token_id, stories.eos_token_ids, stories.vocab_size) == (1, (2,), 512)
    assert (tinyllama.bos_token_id, tinyllama.eos_token_ids, tinyllama.vocab_size) == (1, (2,), 32000)
    assert gpt2.eos_token_ids == (50256, 198)
    assert gpt2.bos_token_id is None


def test_ids_outside_the_vocabulary_have_no_text(published: HFTokenizer) -> None:
    for tokenizer in (published, builtin_tokenizer()):
        hello = tokenizer.encode("hello", add_special_tokens=False)
        assert tokenizer.decode([-7, *hello, tokenizer.vocab_size, 10**9]) == "hello"


@pytest.mark.parametrize(
    ("decoder", "text"),
    [(decoders.Metaspace(), "ab ab"), (decoders.Metaspace(prepend_scheme="never"), " ab ab")],
)
def test_metaspace_strips_the_space_that_it_prepends(decoder: decoders.Decoder, text: str, tmp_path: Path) -> None:
    fast = Fast(models.WordLevel({"▁ab": 0, "<unk>": 1}, unk_token="<unk>"))
    fast.decoder = decoder
    fast.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "tokenizer.json").decode([0, 0]) == text == fast.decode([0, 0])


def test_what_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer at .*missing"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(TokenizerError, match="hub gave"):
        load_tokenizer("nobody/has-this-model")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json that can be read"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"can't be read"):
        load_tokenizer(tmp_path)
    fast = Fast(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    fast.decoder = decoders.WordPiece()
    fast.save(str(tmp_path / "wordpiece.json"))
    with pytest.raises(TokenizerError, match="WordPiece"):
        load_tokenizer(tmp_path / "wordpiece.json")


def test_without_the_hub_the_local_copy_is_taken(
    gpt2_folder: Path, gpt2: HFTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TokenizerError, match="ConnectionError: no network"):
        load_tokenizer("somebody/small")
    copy = tmp_path / "models--somebody--small"
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text("0" * 40)
    shutil.copytree(gpt2_folder, copy / "snapshots" / ("0" * 40))
    assert load_tokenizer("somebody/small").encode("hello") == gpt2.encode("hello")


def test_a_folder_with_a_broken_config_says_so(gpt2_folder: Path, tmp_path: Path) -> None:
    for file in gpt2_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"generation_config\.json is not JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["builtin", "tinyllama"])
def test_half_a_surrogate_pair_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = builtin_tokenizer() if name == "builtin" else request.getfixturevalue(name)
    with pytest.raises(RequestError, match="position 1"):
        tokenizer.encode("a\ud800b")
