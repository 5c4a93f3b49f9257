PACKAGES := $(notdir $(wildcard packages/*))
EXAMPLES := $(wildcard packages/*/examples/*.py)

.PHONY: check lint types edges test floors examples isolated wheels
check: lint types edges test
lint:
	uv run ruff check . && uv run ruff format --check .
types:
	uv run mypy
edges:
	uv run lint-imports && uv run --no-project python tools/check_edges.py
	! find packages -path '*/src/nanorlhf/__init__.py' | grep .
test:
	uv run pytest
# The oldest torch and Triton that nanokernels promises; that Triton's interpreter breaks on NumPy 2.4.
floors:
	uv run --isolated --no-project --with-editable ./packages/nanokernels --with 'torch==2.11.*' \
	  --with 'triton==3.6.*' --with 'numpy<2.4' --with 'pytest>=8.4' pytest packages/nanokernels --slow
examples:
	set -e; for example in $(EXAMPLES); do uv run python $$example; done
# Every test and doctest once, to see that a wheel holds and declares what it needs: what more cases
# of a test need is the same. The doctests are the wheel's: the tree's would be second copies of its modules.
# Refreshed, because uv would take a wheel of this path that it built before the sources changed.
isolated: $(PACKAGES:%=isolated-%)
isolated-%:
	uv run --locked --package $* --isolated --no-editable $(PACKAGES:%=--refresh-package %) --group test \
	  pytest packages/$*/tests --pyargs nanorlhf.$* --one-case
wheels:
	uv build --all-packages --no-sources
