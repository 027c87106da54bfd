# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
OUT ?= demo-out
NANO ?= runs/nano
CORES := $(shell nproc)
SAMPLE := sample
export TOKENIZERS_PARALLELISM := false

.PHONY: install install-test install-sim demo test lint nano baselines ablations fidelity sample clean

install: $(VENV)/.base

$(VENV)/.base: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

install-test: $(VENV)/.test

$(VENV)/.test: $(VENV)/.base
	$(PIP) -e '.[test,umi]'
	touch $@

install-sim: $(VENV)/.sim

$(VENV)/.sim: $(VENV)/.base
	$(PIP) -e '.[sim]'
	$(PIP) --no-deps gym-hil==0.1.14
	touch $@

demo: install
	$(BIN)/wristaugment run --dataset droid --data-dir $(SAMPLE) --out $(OUT)
	$(BIN)/wristaugment verify $(OUT) --source $(SAMPLE)
	$(BIN)/wristaugment evaluate --dataset droid --data-dir $(SAMPLE) \
	  --against observation/wrist_image_left --copy $(OUT) \
	  --recipes projection,mean,anchor --page $(OUT)-page.html
	@echo "dataset: $(OUT)  (tfds.load('droid_101', data_dir='$(OUT)'))"
	@echo "page:    $(OUT)-page.html  (open it in a browser)"

# Loaders that others wrote and that our own versions leave behind, each in an environment of its own
# (tests/peers/NAME.txt). Those of BESIDE also see this project's packages, by a .pth line.
# rlds018 brings a TensorFlow of its own (1.4 GB), so that only `make peers` sets it up.
PEERS := hdf5 lerobot lerobot21 zarr2 rayjob
BESIDE := hdf5 lerobot lerobot21 rayjob

.PHONY: peers test-peers
test-peers: $(PEERS:%=.venv-%/.ready)

peers: test-peers .venv-rlds018/.ready

.venv-%/.ready: tests/peers/%.txt $(VENV)/.test
	$(PYTHON) -m venv --without-pip .venv-$*
	$(BIN)/python -m pip --disable-pip-version-check --python .venv-$*/bin/python install -q \
	  $(if $(filter $*,$(BESIDE)),--no-deps) -r $<
	$(if $(filter $*,$(BESIDE)),$(BIN)/python -c "import sysconfig as s; \
	  print('import site; site.addsitedir(%r)' % s.get_path('purelib'))" \
	  > $$(.venv-$*/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))")/main.pth)
	touch $@

# Two files of tests go at a time: first those bound by one core, a thread each, then those that start
# clusters. Those that end every cluster of the machine, or measure time, have it for themselves.
CLUSTERS := $(patsubst %,tests/jobs/test_jobs_%.py,chaos full_size ray survive train train_full_size)
ALONE := tests/benchmarks tests/jobs/test_jobs_launch.py

test: install-test test-peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(patsubst %,--ignore=%,$(CLUSTERS) $(ALONE))
	$(BIN)/python -m pytest -n 2 --dist loadfile $(CLUSTERS)
	$(BIN)/python -m pytest $(ALONE)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

NANO_DATA := --dataset droid --data-dir $(NANO)/corpus
TRAIN := $(BIN)/wristaugment train

# How much is simulated and trained: on a GPU a quarter of an hour of training, and longer to prepare
# what is trained on, by one process; on two CPU cores some five hours in all.
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
EPISODES := 4000
STAGE1 := --episodes 2400
STAGE2 :=
BLIND := --episodes 2000 --steps 1200 --batch 8
PIX2PIX := --episodes 2000 --steps 4000 --batch 16
PART := --episodes 2000 --steps 500 --batch 8
HEAD := --episodes 2000 --steps 500 --batch 64
else
EPISODES := 1300
STAGE1 := --steps 2300 --batch 12
STAGE2 := --episodes 800 --steps 2700 --batch 2
BLIND := --episodes 500 --steps 300 --batch 2
PIX2PIX := --episodes 500 --steps 400 --batch 4
PART := --episodes 800 --steps 400 --batch 2
HEAD := --episodes 500 --steps 500 --batch 12
endif

# The embedded weights, from nothing; every step goes on where it was stopped.
nano: install-sim
	$(BIN)/wristaugment simulate --workers $(CORES) --steps 8 --depth --split train --episodes $(EPISODES) --shards 26 \
	  --out $(NANO)/corpus
	$(BIN)/wristaugment simulate --workers $(CORES) --steps 8 --depth --split val --episodes 60 --shards 2 \
	  --out $(NANO)/corpus
	$(BIN)/wristaugment simulate --workers $(CORES) --steps 8 --depth --split test --episodes 100 --shards 2 \
	  --out $(NANO)/corpus
	$(TRAIN) reconstruction $(NANO_DATA) $(STAGE1) --out $(NANO) --json $(NANO)/reconstruction.json
	$(TRAIN) generation $(NANO_DATA) $(STAGE2) --out $(NANO) --json $(NANO)/generation.json
	$(TRAIN) confidence $(NANO_DATA) --out $(NANO) --json $(NANO)/confidence-fit.json

# What learns and nano is compared with, trained as for the README's table.
baselines: install-sim
	$(TRAIN) generation --recipe nano-no-map $(NANO_DATA) $(BLIND) --out $(NANO)
	$(TRAIN) generation --recipe pix2pix $(NANO_DATA) $(PIX2PIX) --out $(NANO)

FIDELITY := $(BIN)/python benchmarks/fidelity.py --corpus $(NANO)/corpus --weights $(NANO) --out $(NANO)/fidelity

# nano with a part left out, each trained for as many steps, and what that gives.
ablations: install-sim
	mkdir -p $(NANO)/ablation/heads
	cp $(NANO)/reconstruction.safetensors $(NANO)/ablation/
	ln -sfn ../cache $(NANO)/ablation/cache
	for recipe in nano nano-no-clip nano-no-map; do \
	  $(TRAIN) generation --recipe $$recipe $(NANO_DATA) $(PART) --out $(NANO)/ablation || exit; done
	for recipe in nano nano-no-spc; do \
	  $(TRAIN) wrist --recipe $$recipe $(NANO_DATA) $(HEAD) \
	    --init $(NANO)/reconstruction.safetensors --out $(NANO)/ablation/heads || exit; done
	cp $(NANO)/ablation/generation.safetensors $(NANO)/ablation/heads/
	$(FIDELITY) --parts ablation --ablations $(NANO)/ablation --json $(NANO)/ablation.json

# The table and the picture that the README shows of nano, and every bound (after `make nano baselines`).
fidelity: install-sim
	$(FIDELITY) --parts table,views,confidence,mount,temporal --json $(NANO)/fidelity.json \
	  --readme README.md --picture docs/nano.jpg

# The embedded sample: a dozen held-out episodes with scenes that no other split has.
sample: install-sim
	$(BIN)/wristaugment simulate --steps 18 --split test --episodes 12 --shards 3 --out $(SAMPLE)

clean:
	rm -rf $(OUT) $(OUT)-page.html $(OUT).events.jsonl $(PEERS:%=.venv-%) .venv-rlds018
