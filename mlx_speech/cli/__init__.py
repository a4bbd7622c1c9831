"""The command lines: options, inputs, outputs, progress, and one console; no model code."""
