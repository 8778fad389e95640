# Every target installs what it needs; see tests/setup.sh. Variables change what a target does:
#
## make run                    build the release binary and serve; on the embedded store unless REDIS_URL is set
## make test                   all Rust tests; needs redis-server and nothing else
## make test SUITE=NAME        another suite: clients, proxies, examples, docs, deploy, security; `all` is every suite
## make test REDIS=6           the Rust tests of the API, of presence, of Redis and of faults, on Redis 6.2
## make check                  formatting, lints, documentation, the proto contract, licences of dependencies
## make bench                  dyndata beside its peers, half an hour; QUICK=1: under three minutes;
##                             COUNTS=1: system calls and heap allocations per Get
## make chaos                  failures of Redis in random order; SECONDS=600, and SEED=N repeats an order
## make attacks                attacks on a running server while well-behaved clients measure; SECONDS=30 each
## make fuzz                   random inputs for everything that parses input from others; CASES=1000000
## make docs                   the pages in docs/ that are generated
## make package                the Debian package, in target/debian; `make -C deploy help` lists its tests
## make clean                  remove everything that was built or installed here
##
## ARGS='-k NAME' passes arguments to pytest, in `make test SUITE=...` and `make attacks`.

CARGO ?= cargo
SUITE ?= rust
CASES ?= 1000000

# The tests set their own Redis.
TEST := env -u REDIS_URL
PYTEST = $(TEST) .tools/python/bin/pytest -c tests/python/pyproject.toml $(ARGS)

.PHONY: help
help:
	@sed -n 's/^## \{0,1\}//p' Makefile

.PHONY: run
run:
	$(CARGO) build --release --locked --quiet
	target/release/dyndata serve

.PHONY: test test-rust
test: test-$(SUITE)

test-rust:
	tests/setup.sh $(if $(REDIS),redis-$(REDIS),rust)
ifdef REDIS
	PATH="$(CURDIR)/.tools/redis-$(REDIS):$$PATH"; redis-server --version && \
	  $(TEST) $(CARGO) test --locked --test api --test matrix --test verbs --test redis --test faults \
	    --test presence --test watch --test watch_faults --test indexed
else
	$(TEST) $(CARGO) test --locked
endif

# The suites of tests/python. The attacks need a release binary, since the cost of each frame decides
# how long the well-behaved clients wait. The docs describe what `make run` runs, and deploy/ too.
SUITES := clients proxies examples docs deploy security
.PHONY: test-all $(SUITES:%=test-%)
$(SUITES:%=test-%): test-%: build-%
	tests/setup.sh $*
	$(PYTEST) tests/python/$*

test-all: test-rust $(SUITES:%=build-%)
	tests/setup.sh all
	$(PYTEST) $(SUITES:%=tests/python/%)

.PHONY: build-debug build-release build-rust-example $(SUITES:%=build-%)
build-clients build-proxies: build-debug
build-examples: build-debug build-rust-example
build-docs build-deploy build-security: build-release

build-debug:
	$(CARGO) build --locked

build-release:
	$(CARGO) build --release --locked

build-rust-example:
	CARGO_TARGET_DIR=target $(CARGO) build --locked --manifest-path examples/rust/Cargo.toml

.PHONY: check
check:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path benches/Cargo.toml
	$(CARGO) fmt --check --manifest-path examples/rust/Cargo.toml
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@# Their lock files list the dependencies of this crate, and go stale when those change.
	$(CARGO) metadata --locked --format-version 1 --manifest-path examples/rust/Cargo.toml >/dev/null
	$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	tests/setup.sh check
	.tools/npm/node_modules/.bin/buf lint proto
	.tools/cargo-deny/bin/cargo-deny --locked check bans licenses sources

.PHONY: bench
bench:
	tests/setup.sh bench
	$(CARGO) build --release --locked
	CARGO_TARGET_DIR=target/benches $(CARGO) build --release --locked --manifest-path benches/Cargo.toml
	target/benches/release/bench $(if $(QUICK),--quick) $(if $(COUNTS),counts)

.PHONY: chaos
chaos:
	tests/setup.sh rust
	$(TEST) DYNDATA_CHAOS_SECONDS=$(or $(SECONDS),600) $(if $(SEED),DYNDATA_CHAOS_SEED=$(SEED)) \
	  $(CARGO) test --release --locked --test faults

.PHONY: attacks
attacks: build-release
	tests/setup.sh security
	$(PYTEST) tests/python/security/test_attacks.py tests/python/security/test_checks.py \
	  --seconds=$(or $(SECONDS),30)

.PHONY: fuzz
fuzz:
	$(TEST) PROPTEST_CASES=$(CASES) $(CARGO) test --release --locked --lib fuzz_ -- --nocapture
	@echo "$(CASES) random cases each, none failed"
	$(TEST) fuzz/run.sh $(CASES)

.PHONY: docs
docs:
	docs/api/generate.sh docs
	UPDATE_EXPECT=1 $(CARGO) test --locked --quiet --test settings_page

.PHONY: package
package:
	$(MAKE) -C deploy package

.PHONY: clean
clean:
	$(CARGO) clean
	rm -rf .tools examples/python/dyndata examples/online/dyndata examples/go/dyndatapb benches/peers/go/dyndatapb examples/node/node_modules
