"""What is remembered once: no text is lost that says anything of its own."""

import pytest

from hub_server.memory.sameness import content_hash, says_the_same

_EQUAL = [
    ("Drinks  tea.", "drinks TEA!"),
    ("\u2018Tea\u2019, (he) said", "Tea he said"),
    ("Tea \u2026", "tea"),
    ("5 %", "5%"),
    ("caf\u00e9", "cafe\u0301"),
]
_ARTICLES = [
    ("en-GB", "Walks on the beach", "Walks on beach"),
    ("de", "Mag das Meer", "Mag Meer"),
    ("pt_BR", "Gosta dos pais e os gatos", "Gosta dos pais e gatos"),
]
_OTHER = [
    ("en", "Ann's meeting is on Monday", "Ann's meeting is on Tuesday"),
    ("en", "Ann is older than Bob", "Ann is younger than Bob"),
    ("en", "Has two cats", "Has three cats"),
    ("en", "Lights on at night", "Lights off at night"),
    ("en", "Lives in Porto", "Lived in Porto"),
    ("en", "Used to smoke", "Smoke"),
    ("en", "Was born in 1990", "Was born in 1991"),
    ("en", "Ada beats Bob", "Bob beats Ada"),
    ("en", "Has a few friends", "Has few friends"),
    ("en", "Is ann@x.org", "Is ann@x.com"),
    ("en", "Is ann.lee@x.org", "Is ann-lee@x.org"),
    ("en", "Likes it \U0001f389", "Likes it \U0001f622"),
    ("en", "Mondays :)", "Mondays :("),
    ("en", "Codes in C", "Codes in C++"),
    ("en", "Codes in C", "Codes in C#"),
    ("en", "The limit is -5 degrees", "The limit is 5 degrees"),
    ("en", "Costs $100", "Costs \u20ac100"),
    ("en", "Costs 3.5", "Costs 3,5"),
    ("en", "Is 10\u00b2", "Is 102"),
    ("en", "a < b holds", "a > b holds"),
    ("en", "Wants to die", "Wants to"),
    ("de", "Der Hund bei\u00dft den Mann", "Den Hund bei\u00dft der Mann"),
    ("de", "Trinkt in Ma\u00dfen", "Trinkt in Massen"),
    ("fr", "Il le voit", "Il la voit"),
    ("zh", "\u6211\u559c\u6b22\u8336", "\u6211\u4e0d\u559c\u6b22\u8336"),
    ("hi", "\u0926\u093f\u0928", "\u0926\u093e\u0928"),
    ("en", "!", "?"),
]


@pytest.mark.parametrize(("one", "other"), _EQUAL)
def test_case_spaces_and_marks_say_nothing(one: str, other: str) -> None:
    """Texts that differ in these alone are equal, and have one hash."""
    assert content_hash(one) == content_hash(other)


@pytest.mark.parametrize(("language", "one", "other"), _ARTICLES)
def test_a_definite_article_may_be_left_out(language: str, one: str, other: str) -> None:
    """In the user's language, either way; such texts are not equal."""
    assert content_hash(one) != content_hash(other)
    assert says_the_same(one, other, language)
    assert says_the_same(other, one, language)


@pytest.mark.parametrize(("language", "one", "other"), _OTHER)
def test_whatever_else_differs_says_something_else(language: str, one: str, other: str) -> None:
    """However near the vectors are, in whatever order they are said."""
    assert content_hash(one) != content_hash(other)
    assert not says_the_same(one, other, language)
    assert not says_the_same(other, one, language)
