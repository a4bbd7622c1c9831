"""Word errors: how far one transcript is from another."""


def word_errors(reference: str, hypothesis: str) -> int:
    """Fewest words to insert, delete or replace to make `hypothesis` of `reference`.

    Words are what white space separates; capitals and punctuation count. This is Levenshtein's
    distance, by Wagner and Fischer's dynamic programme (https://doi.org/10.1145/321796.321811).
    """
    expected, found = reference.split(), hypothesis.split()
    # distances from the words of `expected` so far to each beginning of `found`
    row = list(range(len(found) + 1))
    for count, word in enumerate(expected, 1):
        before, row = row, [count]
        for index, other in enumerate(found):
            replaced = before[index] + (word != other)
            row.append(min(replaced, before[index + 1] + 1, row[index] + 1))
    return row[-1]


def word_error_rate(errors: int, words: int) -> float:
    """Errors for each word of the reference, in per cent; each error is 100 where it has none."""
    return 100 * errors / max(words, 1)
