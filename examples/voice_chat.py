"""Talk with a Granite Speech model, all on this device.

    python examples/voice_chat.py                     the microphone: Enter, speak, Enter
    python examples/voice_chat.py one.wav two.wav     recordings, each of them one turn

What is said is transcribed with the model's adapter on; the reply is generated from that text with
the adapter off, in one conversation.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from mlx_speech import ChatSession, MlxSpeechError, UnsupportedOptionError, load


def main() -> int:
    """Returns the exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Talk with a Granite Speech model.")
    add = parser.add_argument
    add("audio", nargs="*", metavar="AUDIO", help="recordings (default: the microphone)")
    add(
        "--model",
        default=os.environ.get("MLX_SPEECH_MODEL") or "ibm-granite/granite-speech-3.3-2b",
        help="folder or repository (default: $MLX_SPEECH_MODEL, else %(default)s)",
    )
    add("--system-prompt", metavar="TEXT", help="e.g. 'Answer in one short sentence.'")
    add("--say", action="store_true", help="speak the replies, on macOS")
    args = parser.parse_args()
    if args.say and not shutil.which("say"):
        parser.error("--say speaks with macOS's say, which is not here")
    try:
        # before the model, which takes longer: is there a microphone?
        turns = ((path, {}) for path in args.audio) if args.audio else microphone()
        session = ChatSession(*load(args.model), system=args.system_prompt)
        failures = [source for source in turns if not turn(session, *source, say=args.say)]
        return 1 if failures else 0
    except KeyboardInterrupt:
        return 130
    except MlxSpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def turn(session: ChatSession, audio, options: dict, *, say: bool) -> bool:
    """Transcribe a recording and print the reply as it comes; returns whether that went well."""
    try:
        said = session.transcribe(audio, **options).text
        print(f"you:   {said}")
        if not said:
            return True
        responses = session.stream(said)
        print("model: ", end="", flush=True)
        reply = ""
        for response in responses:
            reply += response.text
            print(response.text, end="", flush=True)
        print()
        if say:
            subprocess.run(["say"], input=reply.encode(), check=False)
        return True
    except UnsupportedOptionError:
        raise  # holds for every turn
    except MlxSpeechError as error:
        print(f"error: {error}", file=sys.stderr)
        return False


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
