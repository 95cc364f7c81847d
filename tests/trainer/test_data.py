"""Data sets: the right texts, tokenized, or refused in one line when they cannot be read."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.config.sections import DataConfig
from trainer.config.settings import ConfigError
from trainer.data.splits import check_data, check_length, load_splits
from trainer.data.tokens import SPLITS, Split, SplitWithheld
from trainer.data.vocabulary import EOS, UNK

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"
COUNTS = {
    "ptb": (10_000, [929_589, 73_760, 82_430]),
    "wikitext-2": (33_278, [2_088_628, 217_646, 245_569]),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HPO_DATA_DIR", raising=False)
    return tmp_path / "cache"


def text_config(folder: Path, **texts: str) -> DataConfig:
    """A `text` data set of the given texts, kept in `folder`."""
    folder.mkdir(exist_ok=True)
    texts = {"train": "b a b\nb a\n", "valid": "a\n", "test": "b\n"} | texts
    paths = {split: str(folder / f"{split}.txt") for split in SPLITS}
    for split in SPLITS:
        Path(paths[split]).write_text(texts[split], encoding="utf-8")
    return DataConfig.model_validate({"name": "text", **paths})


def refusal(config: DataConfig) -> str:
    """The one line that both the check and the loading refuse `config` with."""
    messages = []
    for read in (check_data, load_splits):
        with pytest.raises(ConfigError) as error:
            read(config)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


def test_a_text_keeps_every_train_word_and_ends_each_line_with_eos(tmp_path: Path) -> None:
    config = text_config(tmp_path, train="b a\tb\n\nb  a c", valid="b z\n", test="ü\r\na\n")
    splits = load_splits(config, test=True)
    assert splits.vocabulary.words == (EOS, "b", "a", "c", UNK)
    texts = {split: splits.vocabulary.decode(splits.tokens(split)) for split in SPLITS}
    assert texts["train"] == ["b", "a", "b", EOS, EOS, "b", "a", "c", EOS]
    assert texts["valid"] == ["b", UNK, EOS]
    assert texts["test"] == [UNK, EOS, "a", EOS]


def test_pydocs_is_there_with_every_python() -> None:
    check_data(DataConfig())
    splits = load_splits(DataConfig(), test=True)
    sizes = [len(splits.tokens(split)) for split in SPLITS]
    assert 90_000 < sum(sizes) < 140_000
    assert 0.85 < sizes[0] / sum(sizes) < 0.95
    assert min(sizes[1:]) > 0.03 * sum(sizes)
    assert 2_000 < len(splits.vocabulary) < 6_000
    train = splits.tokens("train")
    assert splits.tokens("train").dtype == np.uint16
    assert np.bincount(train, minlength=len(splits.vocabulary)).min() >= 2
    for split in SPLITS:
        words = splits.vocabulary.decode(splits.tokens(split))
        assert words.count(UNK) < 0.06 * len(words)
        assert all(word == word.lower() for word in words)


def test_no_long_paragraph_of_pydocs_is_in_two_splits() -> None:
    splits = load_splits(DataConfig(), test=True)

    def paragraphs(split: Split) -> set[str]:
        text = " ".join(splits.vocabulary.decode(splits.tokens(split)))
        return {part for part in text.split(f"{EOS} {EOS}") if len(part.split()) > 20}

    train, valid, test = (paragraphs(split) for split in SPLITS)
    assert min(len(train), len(valid), len(test)) > 20
    assert not train & valid
    assert not train & test
    assert not valid & test


def test_loading_the_default_set_never_imports_torch() -> None:
    code = (
        "import sys, trainer.data.batches, trainer.data.splits, trainer.config.train\n"
        "trainer.data.splits.load_splits(trainer.config.train.DataConfig())\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the licensed texts are not on this machine")
@pytest.mark.parametrize("name", COUNTS)
def test_the_published_sets_have_their_published_sizes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(REAL_DATA))
    config = DataConfig.model_validate({"name": name})
    check_data(config, test=True)
    splits = load_splits(config, test=True)
    vocabulary_size, tokens = COUNTS[name]
    assert len(splits.vocabulary) == vocabulary_size
    assert [len(splits.tokens(split)) for split in SPLITS] == tokens
    assert splits.vocabulary.decode(splits.tokens("valid")[-1:]) == [EOS]


def test_a_known_set_with_another_text_is_refused_by_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "ptb").mkdir()
    for split in SPLITS:
        (tmp_path / f"ptb/ptb.{split}.txt").write_text("no it was n't black monday\n")
    message = refusal(DataConfig(name="ptb", dir=str(tmp_path)))
    assert message.startswith(str(tmp_path / "ptb/ptb.train.txt"))
    assert "sha256" in message
    assert "fetch the original" in message


def test_a_data_folder_or_file_that_is_missing_is_named_with_what_would_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(DataConfig(name="wikitext-103"))
    assert message.startswith(f"{cache / 'data/wikitext-103/train.txt'}: no such file")
    assert "`hpo data prepare wikitext-103` fetches it" in message
    message = refusal(DataConfig(name="ptb", dir=str(tmp_path / "nowhere")))
    assert message.startswith(f"data.dir: {tmp_path / 'nowhere'}: no such folder")
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    message = refusal(DataConfig(name="ptb"))
    assert message.startswith(f"{tmp_path / 'ptb/ptb.train.txt'}: no such file")
    assert "HPO_DATA_DIR" in message


def test_data_dir_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "other"))
    message = refusal(DataConfig(name="ptb", dir=str(tmp_path)))
    assert message.startswith(str(tmp_path / "ptb/ptb.train.txt"))


def test_wikitext_103_is_verified_by_its_published_checksums(tmp_path: Path) -> None:
    (tmp_path / "wikitext-103").mkdir()
    for split in SPLITS:
        (tmp_path / f"wikitext-103/{split}.txt").write_text(" = Homarus gammarus = \n")
    message = refusal(DataConfig(name="wikitext-103", dir=str(tmp_path)))
    assert "its sha1 is " in message
    assert "not b7497e2dfe77e72cfef5e3dbc61b7b53712ac211" in message


def test_a_text_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    config = text_config(tmp_path, valid="\n \n")
    assert refusal(config).startswith(f"data.valid: {tmp_path / 'valid.txt'} holds no words")
    (tmp_path / "valid.txt").write_bytes(b"caf\xe9\n")
    assert "valid.txt: not UTF-8 text" in refusal(config)
    (tmp_path / "valid.txt").unlink()
    assert "valid.txt: no such file; put it there, or change data.valid" in refusal(config)
    (tmp_path / "valid.txt").mkdir()
    assert "valid.txt: cannot be read: Is a directory" in refusal(config)


def test_a_cache_that_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "set HPO_CACHE_DIR to a folder that can be written" in refusal(config)


def test_text_paths_and_the_cache_are_taken_as_given_to_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = DataConfig(name="text", train="train.txt", valid="valid.txt", test="./test.txt")
    monkeypatch.setenv("HPO_CACHE_DIR", "elsewhere")
    splits = load_splits(config)
    assert len(splits.tokens("train")) == 7
    assert splits.folder.parent.resolve() == tmp_path / "elsewhere"


def test_a_check_builds_nothing(tmp_path: Path, cache: Path) -> None:
    check_data(text_config(tmp_path))
    check_data(DataConfig())
    assert [path.name for path in cache.iterdir()] == ["sha256"]


def test_a_file_is_hashed_again_only_when_its_size_or_time_changes(
    tmp_path: Path, cache: Path
) -> None:
    config, train = text_config(tmp_path), tmp_path / "train.txt"
    first = load_splits(config)
    changed_at = train.stat().st_mtime_ns
    train.write_text("a b a\na b\n")
    os.utime(train, ns=(changed_at, changed_at))
    assert load_splits(config).folder == first.folder
    os.utime(train, ns=(changed_at, changed_at + 1))
    second = load_splits(config)
    assert second.folder != first.folder
    assert second.vocabulary.decode(second.tokens("train")[:3]) == ["a", "b", "a"]


def test_a_remembered_checksum_that_was_cut_short_is_not_believed(
    tmp_path: Path, cache: Path
) -> None:
    config = text_config(tmp_path)
    first = load_splits(config)
    for note in (cache / "sha256").iterdir():
        note.write_text(note.read_text()[:10])
    assert load_splits(config).folder == first.folder


def test_tuning_reads_no_byte_of_the_test_text_and_cannot_ask_for_it(tmp_path: Path) -> None:
    config = text_config(tmp_path)
    Path(config.test or "").unlink()
    for told in (config, config.model_copy(update={"test": None})):
        check_data(told)
        splits = load_splits(told)
        assert not (splits.folder / "test.bin").exists()
        for ask in (splits.tokens, splits.words):
            with pytest.raises(SplitWithheld, match="the test split is not read while tuning"):
                ask("test")
    with pytest.raises(ConfigError, match="test.txt: no such file"):
        load_splits(config, test=True)


def test_a_cache_is_shared_by_equal_texts_and_by_no_others(tmp_path: Path) -> None:
    folders = [
        load_splits(text_config(tmp_path / "a")).folder,
        load_splits(text_config(tmp_path / "b")).folder,
        load_splits(text_config(tmp_path / "c", train="a b\n")).folder,
        load_splits(text_config(tmp_path / "d", valid="b\n")).folder,
    ]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_a_text_that_is_too_short_for_a_batch_is_found_before_the_training(tmp_path: Path) -> None:
    config = text_config(tmp_path, train="a b\n" * 5)
    check_length(config.model_copy(update={"context": 5, "batch_size": 2}))
    with pytest.raises(ConfigError) as refused:
        check_length(config.model_copy(update={"context": 4, "batch_size": 3}))
    assert str(refused.value).startswith(
        "data.batch_size: 3 sequences of data.context 4 need 16 tokens, the train split has 15; "
    )
    with pytest.raises(ConfigError, match="need 6500000 tokens, the train split has"):
        check_length(DataConfig(batch_size=99_999, context=65))
    check_length(DataConfig())


def test_words_that_are_several_byte_pairs_each_may_be_enough(tmp_path: Path) -> None:
    config = text_config(tmp_path, train="abcdefgh ijklmnop\n" * 4)
    config = config.model_copy(update={"tokenizer": "bpe", "context": 4, "batch_size": 3})
    check_length(config.model_copy(update={"vocabulary_size": 258}))
    with pytest.raises(ConfigError, match="need 16 tokens, the train split has 12"):
        check_length(config.model_copy(update={"vocabulary_size": 1000}))


def test_a_text_is_utf_8_to_its_end(tmp_path: Path) -> None:
    config = text_config(tmp_path)
    with open(config.train or "", "ab") as text:
        text.write(b"a b\n" * 300_000 + b"\xff\n")
    assert refusal(config).endswith("not UTF-8 text: invalid start byte; convert it")


def test_a_cache_that_cannot_be_written_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "the token cache cannot be used: Not a directory" in refusal(DataConfig())
