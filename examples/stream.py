"""An answer as it comes, and how fast it came: `python examples/stream.py MODEL PROMPT`."""

import sys

import mlx_speech

name, prompt = sys.argv[1:]
model, processor = mlx_speech.load(name)
messages = [{"role": "user", "content": prompt}]
for response in mlx_speech.stream_generate(model, processor, messages, max_new_tokens=256):
    print(response.text, end="", flush=True)
print()
print(f"{response.generation_tps:.0f} tokens a second", file=sys.stderr)
