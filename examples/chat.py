"""A conversation: `python examples/chat.py MODEL MESSAGE...`.

The cache lives from turn to turn, so that each message feeds only its own tokens to the model.
"""

import argparse
import sys

import mlx_speech


def main() -> None:
    parser = argparse.ArgumentParser(description="A conversation.")
    parser.add_argument("model", metavar="MODEL", help="folder or repository")
    parser.add_argument("messages", metavar="MESSAGE", nargs="+", help="what is said, in turn")
    args = parser.parse_args()
    session = mlx_speech.ChatSession(*mlx_speech.load(args.model), max_new_tokens=256)
    for message in args.messages:
        print(f"> {message}")
        for response in session.stream(message):
            print(response.text, end="", flush=True)
        print(f"  [{response.prompt_tokens} tokens in, {response.generation_tokens} out]")


if __name__ == "__main__":
    try:
        main()
    except mlx_speech.MlxSpeechError as error:
        sys.exit(f"error: {error}")
