# Every target sets up what it needs by itself (see ./test); a second time that takes a second.
.PHONY: help fast test lint types unit contract rooms system attack fault lab format lock demo demo-clean \
	attack-table corruption-table bench-run bench-split bench-split-engines bench-start bench-memory bench-chain \
	bench-drill bench-pull

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

fast:  ## lint, types and unit tests: under a minute, without root
	./test lint types unit

test:  ## everything, as continuous integration does
	./test

lint types unit contract rooms system attack fault lab:  ## one suite
	./test $@

format:  ## put the source in its one form
	./test run ruff format
	./test run ruff check --fix

lock:  ## pin the newest development tools and dependencies (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade -o tools/dev.lock tools/dev.in
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -o tools/run.lock tools/run.in

demo:  ## the main job for real, on this machine's own files
	./demo

demo-clean:  ## take away what the demo made
	./demo --clean

attack-table:  ## what each escape does in each room, as Markdown
	./test run python -m tests.attack.table

corruption-table:  ## what finds which damage, written into the reference
	./test run python -m tests.contract.corruption

bench-run bench-split bench-split-engines bench-start bench-memory bench-chain bench-drill bench-pull:  ## speed and size; one JSON object last
	./test run python -m bench.$(subst -,_,$(@:bench-%=%))
