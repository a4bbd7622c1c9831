"""An answer as it comes, and how fast it came: `python examples/stream.py MODEL PROMPT`."""

import argparse
import sys

import mlx_speech


def main() -> None:
    parser = argparse.ArgumentParser(description="An answer as it comes, and how fast it came.")
    parser.add_argument("model", metavar="MODEL", help="folder or repository")
    parser.add_argument("prompt", metavar="PROMPT", help="what is to be answered")
    args = parser.parse_args()
    model, processor = mlx_speech.load(args.model)
    messages = [{"role": "user", "content": args.prompt}]
    for response in mlx_speech.stream_generate(model, processor, messages, max_new_tokens=256):
        print(response.text, end="", flush=True)
    print()
    print(f"{response.generation_tps:.0f} tokens a second", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except mlx_speech.MlxSpeechError as error:
        sys.exit(f"error: {error}")
