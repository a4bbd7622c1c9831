"""Speech models that are released, for those who look for one."""

from typing import NamedTuple

from ..loading import ARCHITECTURES


class Release(NamedTuple):
    """A repository, what is downloaded of it in GB, and what it is good for."""

    repository: str
    gigabytes: float
    notes: str


#: family -> examples of it
RELEASED = {
    "Granite Speech": (
        Release("ibm-granite/granite-speech-4.1-2b", 4.6, "punctuation, keywords"),
        Release("ibm-granite/granite-4.0-1b-speech", 4.6, "keywords"),
        Release("ibm-granite/granite-speech-4.1-2b-plus", 4.2, "no translation"),
        Release("ibm-granite/granite-speech-3.3-2b", 6.0, "chats as well"),
        Release("ibm-granite/granite-speech-3.3-8b", 17.3, "chats as well"),
    ),
    "Speech2Text": (
        Release("facebook/s2t-small-librispeech-asr", 0.12, "English"),
        Release("facebook/s2t-medium-librispeech-asr", 0.29, "English"),
        Release("facebook/s2t-large-librispeech-asr", 1.07, "English"),
        Release("facebook/s2t-medium-mustc-multilingual-st", 0.31, "to eight languages"),
        Release("facebook/s2t-small-mustc-en-fr-st", 0.12, "to French"),
        Release("facebook/s2t-small-covost2-en-de-st", 0.11, "to German"),
    ),
}


def list_models() -> str:
    """All of them, one a line."""
    width = max(len(r.repository) for family in RELEASED.values() for r in family)
    lines = []
    for family, releases in RELEASED.items():
        lines.append(f"{family}:")
        for release in releases:
            size = f"{release.gigabytes:.2f}" if release.gigabytes < 2 else release.gigabytes
            lines.append(f"  {release.repository:{width}}  {size:>5} GB  {release.notes}")
    lines.append("Others of the same kinds load as well, by their model_type:")
    lines.append(f"  {', '.join(kind for kind, row in ARCHITECTURES.items() if row.is_speech)}")
    return "\n".join(lines) + "\n"
