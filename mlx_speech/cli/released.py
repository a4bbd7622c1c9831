"""Speech models that are released, and what each can do, for those who look for one."""

from textwrap import fill
from typing import NamedTuple

from ..loading import ARCHITECTURES


class Release(NamedTuple):
    """A repository, and what its model can do.

    gigabytes: what is downloaded of it.
    languages: codes of the languages spoken that it was trained on.
    targets: of those that it translates to; 4.x and 5.0 to Italian and Mandarin only from English.
    times: the smallest parts of a text whose times it can tell.
    streams: the smallest parts of a text that come at once where it streams.
    """

    repository: str
    gigabytes: float
    languages: str
    targets: str = ""
    punctuation: bool = False
    keywords: bool = False
    speakers: bool = False
    times: str = "words"
    streams: str = "tokens"
    license: str = "Apache-2.0"

    @property
    def size(self) -> str:
        """In GB, with as many digits as say something."""
        return f"{self.gigabytes:.{2 if self.gigabytes < 2 else 1}f} GB"

    @property
    def options(self) -> list[str]:
        """What can be asked of it beside the plain text."""
        return [name for name in ("punctuation", "keywords", "speakers") if getattr(self, name)]


_FIVE, _SIX, _EIGHT = "en fr de es pt", "en fr de es pt ja", "en fr de es pt ja it zh"

#: family -> examples of it; the README has them, too
RELEASED = {
    "Granite Speech": (
        Release(
            "ibm-granite/granite-speech-4.1-2b", 4.8, _SIX, _EIGHT, punctuation=True, keywords=True
        ),
        Release(
            "ibm-granite/granite-speech-5.0-2b", 4.8, _SIX, _EIGHT, punctuation=True, keywords=True
        ),
        Release("ibm-granite/granite-4.0-1b-speech", 4.6, _SIX, _EIGHT, keywords=True),
        Release("ibm-granite/granite-speech-4.1-2b-plus", 4.2, _FIVE, keywords=True, speakers=True),
        Release("ibm-granite/granite-speech-4.1-2b-nar", 4.5, _FIVE, streams="segments"),
        Release("ibm-granite/granite-speech-5.0-470m-turboctc", 0.95, "en", streams="segments"),
        Release(
            "ibm-granite/granite-speech-5.0-470m-turboctc-nc",
            0.95,
            "en",
            streams="segments",
            license="CC-BY-NC-SA-4.0",
        ),
        Release("ibm-granite/granite-speech-3.3-2b", 6.0, _FIVE, "en fr de es pt ja zh"),
        Release("ibm-granite/granite-speech-3.3-8b", 17.3, _FIVE, "en fr de es pt ja zh"),
    ),
    "Speech2Text": tuple(
        Release(f"facebook/s2t-{name}", size, "en", targets, times="segments", license="MIT")
        for name, size, targets in (
            ("small-librispeech-asr", 0.12, ""),
            ("medium-librispeech-asr", 0.29, ""),
            ("large-librispeech-asr", 1.07, ""),
            ("medium-mustc-multilingual-st", 0.31, "de es fr it nl pt ro ru"),
            ("small-mustc-en-fr-st", 0.12, "fr"),
            ("small-covost2-en-de-st", 0.11, "de"),
        )
    ),
}

_WIDTH = 80


def list_models() -> str:
    """All of them: what they are called, how large they are and under what licence; what they
    can do."""
    width = max(len(r.repository) for family in RELEASED.values() for r in family)
    lines = []
    for family, releases in RELEASED.items():
        lines.append(f"{family}:")
        for release in releases:
            lines.append(f"  {release.repository:{width}} {release.size:>8}  {release.license}")
            translates = [f"translates to {release.targets}"] * bool(release.targets)
            parts = *release.options, f"times of {release.times}", f"streams {release.streams}"
            able = "; ".join([release.languages, *translates, ", ".join(parts)])
            lines.append(fill(able, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    lines.append("Others of the same kinds load as well, by their model_type:")
    kinds = ", ".join(kind for kind, row in ARCHITECTURES.items() if row.is_speech)
    lines.append(fill(kinds, _WIDTH, initial_indent="  ", subsequent_indent="  "))
    return "\n".join(lines) + "\n"
