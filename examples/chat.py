"""A conversation: `python examples/chat.py MODEL MESSAGE...`.

The cache lives from turn to turn, so that each message feeds only its own tokens to the model.
"""

import sys

import mlx_speech

name, *messages = sys.argv[1:]
session = mlx_speech.ChatSession(*mlx_speech.load(name), max_new_tokens=256)
for message in messages:
    print(f"> {message}")
    for response in session.stream(message):
        print(response.text, end="", flush=True)
    print(f"  [{response.prompt_tokens} tokens in, {response.generation_tokens} out]")
