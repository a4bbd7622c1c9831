"""Talk with a speech model, or by way of it with any other, all on this device.

    python examples/voice_chat.py                     the microphone: Enter, speak, Enter
    python examples/voice_chat.py one.wav two.wav     recordings, each of them one turn

What is said is transcribed with the model's adapter on; the reply is generated from that text with
the adapter off, or by --chat-model, in one conversation. --say speaks each sentence of a reply
while the next ones are still being written.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import mlx_speech
from mlx_speech import MlxSpeechError, UnsupportedOptionError

#: what ends a sentence, up to where the next one begins
SENTENCE_END = re.compile(r"[.!?…]+[\"')\]”’»]*\s+|\n+")


def main() -> int:
    """Returns the exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Talk with a speech model.")
    add = parser.add_argument
    add("audio", nargs="*", metavar="AUDIO", help="recordings (default: the microphone)")
    add(
        "--model",
        default=os.environ.get("MLX_SPEECH_MODEL") or "ibm-granite/granite-speech-3.3-2b",
        help="folder or repository (default: $MLX_SPEECH_MODEL, else %(default)s)",
    )
    add("--chat-model", metavar="MODEL", help="what replies in its place: any that mlx-lm runs")
    add("--system-prompt", metavar="TEXT", help="e.g. 'Answer in one short sentence.'")
    add("--say", action="store_true", help="speak the replies, on macOS")
    args = parser.parse_args()
    if args.say and not shutil.which("say"):
        parser.error("--say speaks with macOS's say, which is not here")
    try:
        # before the model, which takes longer: is there a microphone?
        turns = ((path, {}) for path in args.audio) if args.audio else microphone()
        options = {"chat_model": args.chat_model, "system": args.system_prompt}
        session = mlx_speech.ChatSession(*mlx_speech.load(args.model), **options)
        failures = [source for source in turns if not turn(session, *source, say=args.say)]
        return 1 if failures else 0
    except KeyboardInterrupt:
        return 130
    except MlxSpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def turn(session: mlx_speech.ChatSession, audio, options: dict, *, say: bool) -> bool:
    """Transcribe a recording and print the reply as it comes; returns whether that went well."""
    try:
        said = session.transcribe(audio, **options).text
        if not said:
            print("no speech was found", file=sys.stderr)
            return True
        print(f"you:   {said}")
        responses = session.stream(said)
        print("model: ", end="", flush=True)
        with Speaker() if say else nullcontext() as speaker:
            for response in responses:
                print(response.text, end="", flush=True)
                if speaker:
                    speaker.add(response.text)
            print()
        return True
    except UnsupportedOptionError:
        raise  # holds for every turn
    except MlxSpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return False


class Speaker:
    """Speaks a reply while it is being written, sentence by sentence, with macOS's `say`.

    Within it, what `add` gets is spoken; at its end it waits for the last sentence, or where that
    is an error or Ctrl-C is silent at once. What a model only thinks is not spoken.
    """

    def __init__(self):
        self._rest = ""  # what is no whole sentence yet
        self._sentences: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._saying: subprocess.Popen | None = None
        self._silent = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, text: str) -> None:
        """A piece of the reply."""
        self._rest += text
        before, thinks, thought = self._rest.partition("<think>")
        if thinks:
            _, done, after = thought.partition("</think>")
            if not done:
                return
            self._rest = before + after
        while end := SENTENCE_END.search(self._rest):
            self._sentences.put(self._rest[: end.end()].strip())
            self._rest = self._rest[end.end() :]

    def _work(self) -> None:
        for sentence in iter(self._sentences.get, None):
            if sentence and not self._silent:
                self._saying = subprocess.Popen(["say"], stdin=subprocess.PIPE)
                if self._silent:  # by now
                    self._saying.terminate()
                self._saying.communicate(sentence.encode())

    def __enter__(self) -> Speaker:
        return self

    def __exit__(self, kind: type | None, *error) -> None:
        try:
            if kind is None:
                self._sentences.put(self._rest.partition("<think>")[0].strip())
                self._sentences.put(None)
                self._thread.join()
        finally:
            self._silent = True
            self._sentences.put(None)
            if self._saying:
                self._saying.terminate()


def microphone() -> Iterator[tuple]:
    """What is said, one recording after the other, until Ctrl-D: samples and their rate.

    Raises:
        MlxSpeechError: there is no microphone.
    """
    try:
        import numpy as np
        import sounddevice
    except ImportError as error:
        raise MlxSpeechError("the microphone needs sounddevice: pip install sounddevice") from error
    except OSError as error:
        raise MlxSpeechError(f"sounddevice does not work: {error}") from error
    try:
        rate = int(sounddevice.query_devices(kind="input")["default_samplerate"])
    except (ValueError, sounddevice.PortAudioError) as error:
        raise MlxSpeechError(f"no microphone: {error}") from error

    def record() -> np.ndarray:
        blocks = [np.zeros((0, 1), np.float32)]

        def keep(block, *_) -> None:
            blocks.append(block.copy())

        try:
            with sounddevice.InputStream(rate, channels=1, callback=keep):
                input("Speak, then press Enter. ")
        except sounddevice.PortAudioError as error:
            raise MlxSpeechError(f"the microphone does not work: {error}") from error
        return np.concatenate(blocks)[:, 0]

    def recordings():
        try:
            while True:
                input("Press Enter to speak, Ctrl-D to leave. ")
                yield record(), {"sampling_rate": rate}
        except EOFError:
            print()

    return recordings()


if __name__ == "__main__":
    sys.exit(main())
