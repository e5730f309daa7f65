"""What text becomes before it is indexed or searched."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_server.retrieval.text import Analyzer


def _finds(language: str, text: str, query: str) -> bool:
    analyzer = Analyzer(language)
    return bool(set(analyzer.terms(text)) & set(analyzer.query_terms(query)))


@pytest.mark.parametrize(
    ("language", "text", "query"),
    [
        ("en", "She was running late", "run"),
        ("en-US", "two cats", "cat"),
        ("de-CH", "die Häuser", "Haus"),
        ("nb", "hesten", "hester"),
        ("ru", "книги", "книга"),
    ],
)
def test_inflected_words_meet_at_their_stem(language: str, text: str, query: str) -> None:
    """A word is found by another form of it, in the language its tag names."""
    assert _finds(language, text, query)


@pytest.mark.parametrize("language", ["zh", "xx", "", "porter", "und"])
def test_a_language_without_stemmer_keeps_words_whole(language: str) -> None:
    """A language no stemmer is known for still indexes whole words."""
    assert Analyzer(language).terms("Running cats") == ["running", "cats"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("STRASSE", "straße"),  # casefolding, not lower-casing
        ("ﬁle", "FILE"),  # a ligature
        ("\uff46\uff55\uff4c\uff4c", "full"),  # full width
        ("cafe\u0301", "caf\u00e9"),  # decomposed and composed
        ("\u3392", "mhz"),  # a sign whose letters are capitals
    ],
)
def test_spellings_of_one_word_are_one_term(text: str, query: str) -> None:
    """Case, width, ligatures and composition make no difference."""
    assert _finds("und", text, query)


def test_dotted_and_dotless_i_differ_in_turkish() -> None:
    """Turkish I is the capital of dotless i, elsewhere of i."""
    assert _finds("tr", "IRMAK", "\u0131rmak")
    assert _finds("en", "INDEX", "index")


def test_combining_vowels_do_not_cut_words() -> None:
    """A Hindi word with vowel signs is one term."""
    assert Analyzer("und").terms("हिन्दी") == ["हिन्दी"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("我喜欢猫和狗", "喜欢"),
        ("我喜欢猫和狗", "猫"),
        ("東京タワーへ行く", "タワー"),
        ("東京タワーへ行く", "東京タワー"),
        ("한국어를배운다", "한국어"),
        ("ﾀﾜｰ", "タワー"),  # half-width
        ("我的iPhone手机坏了", "iphone"),
        ("我的iPhone手机坏了", "手机"),
    ],
)
def test_text_without_spaces_is_found_by_a_part_of_it(text: str, query: str) -> None:
    """Chinese, Japanese and Korean are found by words within a run, even of one character."""
    assert _finds("zh", text, query)


def test_a_query_without_spaces_asks_for_pairs_not_characters() -> None:
    """A longer query does not match every text that shares a character with it."""
    assert not _finds("ja", "京劇", "東京")


def test_punctuation_is_no_term() -> None:
    """Signs and spaces give no terms, whatever their script."""
    assert Analyzer("en").terms(" ,.;!?-—・。、「」\t\n🙂") == []


def test_no_text_takes_long() -> None:
    """Nor holds up other threads: normalizing these marks at once takes eight seconds."""
    analyzer, text = Analyzer("en"), "owl a" + "\u0315\u0300" * 35_000
    started = time.process_time()
    assert analyzer.matches(text, analyzer.query_terms("owls")) == [(0, 3)]
    assert time.process_time() - started < 3


@pytest.mark.parametrize("word", ["caf\u0065\u0301 ", "\uff76\uff9e\uff76", "\u1112\u1161\u11ab"])
def test_a_long_text_folds_as_a_short_one(word: str) -> None:
    """No letter is cut apart, wherever it stands."""
    analyzer = Analyzer("und")
    assert set(analyzer.terms(word * 3)) == set(analyzer.terms(word * 5_000))


def test_threads_may_share_an_analyzer() -> None:
    """Concurrent use gives what use by one thread gives."""
    analyzer = Analyzer("en")
    texts = [f"running{n} houses flies{n} nationality relational" * 20 for n in range(50)]
    alone = [analyzer.terms(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(analyzer.terms, texts)) == alone


@pytest.mark.parametrize(
    ("text", "query", "matches"),
    [
        ("The hunters HUNT owls", "hunting owl", ["HUNT", "owls"]),
        ("\uff12\uff16 ﬁsh", "26 fish", ["\uff12\uff16", "ﬁsh"]),
        ("naïve nai\u0308ve", "naïve", ["naïve", "nai\u0308ve"]),
        ("東京都に住む。京都", "京都", ["京都", "京都"]),
        ("東京都に住む", "東京都", ["東京都"]),
        ("東京都", "京", ["京"]),
        ("ｶﾞｽ", "ガス", ["ｶﾞｽ"]),
        ("½ cup", "2", ["½"]),
        ("", "owl", []),
        ("owl", "...", []),
    ],
)
def test_matching_words_are_found_where_they_stand(
    text: str, query: str, matches: list[str]
) -> None:
    """In the text as it was written, whatever folding made of it."""
    analyzer = Analyzer("en")
    ranges = analyzer.matches(text, set(analyzer.query_terms(query)))
    assert [text[start:end] for start, end in ranges] == matches


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_word_of_a_text_matches_itself(text: str) -> None:
    """Its own terms cover just what is searched: all its words, and nothing between them."""
    analyzer = Analyzer("xx")
    ranges = analyzer.matches(text, set(analyzer.terms(text)))
    assert bool(ranges) == bool(analyzer.terms(text))
    assert all(analyzer.terms(text[start:end]) for start, end in ranges)
    between = [0, *(place for one in ranges for place in one), len(text)]
    gaps = zip(between[::2], between[1::2], strict=True)
    assert not any(analyzer.terms(text[start:end]) for start, end in gaps)
