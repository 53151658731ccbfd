"""Classes in words."""

from kd.study.words import class_names, wordnet


def test_wordnets_numbers_become_words_and_all_other_names_stay():
    assert class_names(["n01443537", "goldfish", "n00000000", 7, "class_n01443537"]) == ["goldfish", "goldfish", "n00000000", "7", "class_n01443537"]
    assert class_names(()) == [] and class_names(str(n) for n in range(3)) == ["0", "1", "2"]


def test_no_two_classes_have_one_word():
    assert len(set(wordnet().values())) == len(wordnet()) == 100
    assert all(len(number) == 9 and number[0] == "n" and word.strip() == word != "" for number, word in wordnet().items())
