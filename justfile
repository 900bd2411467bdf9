# `just up` starts Kafka and vLLM, `just run` the processor. Without a Docker engine `up` starts the built-in sandbox instead.

set shell := ["bash", "-euo", "pipefail", "-c"]

cargo := "cargo"
binary := "target/release/kafka-llm-processor"
admin_port := "9100"
sandbox_pid := "target/sandbox.pid"
sandbox_log := "target/sandbox.log"

# list the recipes
default:
    @{{ just_executable() }} --list --unsorted

# infrastructure only: Kafka on localhost:9092, vLLM on localhost:8000; just up cpu, or just up sim without a model
up model="gpu":
    #!/usr/bin/env bash
    set -euo pipefail
    case {{ model }} in gpu | cpu | sim) ;; *) echo "just up [gpu|cpu|sim]" >&2; exit 64 ;; esac
    if docker info > /dev/null 2>&1 && docker compose version > /dev/null 2>&1; then
        case {{ model }} in
            sim) echo "Starting Kafka and a SIMULATED vLLM in containers: its answers come from no model." ;;
            *) echo "Starting Kafka and vLLM in containers; the first start downloads the model." ;;
        esac
        docker compose --profile {{ model }} up --detach --wait --build || {
            echo "Not everything came up; docker compose logs tells why. vLLM needs a GPU and NVIDIA's container toolkit: just up cpu needs neither." >&2
            echo "To try the processor without a model: just down, then just up sim" >&2
            exit 1
        }
        echo "Ready: Kafka on localhost:9092, vLLM on http://localhost:8000. Next: just run"
        exit
    fi
    echo "No Docker engine answers here (or its compose plugin is missing):"
    echo "starting the sandbox instead, an in-memory Kafka and a SIMULATED vLLM. Its answers come from no model."
    {{ just_executable() }} cargo={{ cargo }} binary={{ binary }} sandbox-start

# everything in containers, the processor and monitoring too: just up-all, just up-all cpu, just up-all sim
up-all model="gpu":
    #!/usr/bin/env bash
    set -euo pipefail
    docker info > /dev/null 2>&1 && docker compose version > /dev/null 2>&1 || {
        echo "just up-all needs a Docker engine with the compose plugin; without one: just up, then just run" >&2
        exit 1
    }
    running=$(docker compose ps --status running --services 2> /dev/null || true)
    if ! grep -qx processor <<< "$running" && (: < /dev/tcp/127.0.0.1/{{ admin_port }}) 2> /dev/null; then
        echo "Something listens on port {{ admin_port }}: a processor seems to run on this host. Stop it first; two would share one input." >&2
        exit 1
    fi
    docker compose --profile {{ model }} --profile processor --profile monitoring up --detach --wait --build
    echo "Ready: the dashboard is on http://localhost:3000. Next: just produce, just results"

# the processor on this host, in the foreground; ctrl-c drains it
run *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    if command -v docker > /dev/null; then
        running=$(docker compose ps --status running --services 2> /dev/null || true)
        if grep -qx processor <<< "$running"; then
            echo "The processor already runs in a container; two would share one input." >&2
            echo "Follow it with: docker compose logs -f processor     Stop it with: docker compose stop processor" >&2
            exit 1
        fi
    fi
    exec {{ cargo }} run --release -- run {{ arguments }}

# send sample documents: just produce --count 3
produce *arguments:
    @{{ cargo }} run --release --quiet -- produce {{ arguments }}

# show results: just results --follow
results *arguments:
    @{{ cargo }} run --release --quiet -- results {{ arguments }}

# is everything there? a tick or a cross each
check *arguments:
    @{{ cargo }} run --release --quiet -- check {{ arguments }}

# put the table of all settings into the README again
readme-table:
    #!/usr/bin/env bash
    set -euo pipefail
    table=$({{ cargo }} run --quiet -- config reference --markdown)
    {
        sed '/^<!-- begin: config reference/q' README.md
        echo "$table"
        sed -n '/^<!-- end: config reference/,$p' README.md
    } > target/README.md
    mv target/README.md README.md

# stop what `up` or `up-all` started; Kafka's data and the model stay in their volumes
down:
    #!/usr/bin/env bash
    set -euo pipefail
    {{ just_executable() }} sandbox-stop
    if docker info > /dev/null 2>&1 && docker compose version > /dev/null 2>&1; then
        docker compose --profile '*' down
    fi

# all tests; nothing else to set up
test *arguments:
    {{ cargo }} test {{ arguments }}

# the simulation with many seeds: just simulate 100000; SIMULATION_SEED=n just simulate runs one again and prints what happens in it
simulate seeds="10000":
    SIMULATION_SEEDS={{ seeds }} {{ cargo }} test --release --test simulation -- --nocapture every_document

# the suite against a real Apache Kafka; REAL_KAFKA_TOOLS names the folder of the scripts that start one
test-kafka:
    REAL_KAFKA_REQUIRED=1 {{ cargo }} test --release --test real_kafka -- --nocapture

# storms on a real Apache Kafka: twenty seeds, or one: just storm seed=7 order=key seconds=60; what has passed is left out (`again`: is not)
storm *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    seeds=$(seq 20) resume=1
    for argument in {{ arguments }}; do
        case $argument in
            again) resume=0 ;;
            seed=*) seeds=${argument#*=} ;;
            *=*) name=${argument%%=*}; export "STORM_${name^^}=${argument#*=}" ;;
            *) echo "just storm [again] [seed=N] [guarantee=…] [assignment=…] [order=…] [brokers=1|3] [instances=N] [documents=N] [seconds=N]" >&2; exit 64 ;;
        esac
    done
    {{ cargo }} build --release
    failed=()
    for seed in $seeds; do
        REAL_KAFKA_REQUIRED=1 KLP_TEST_BINARY=$PWD/{{ binary }} STORM_SEED=$seed STORM_RESUME=$resume \
            {{ cargo }} test --test storm -- --nocapture no_storm_loses_a_document || failed+=("$seed")
    done
    [ ${#failed[@]} -eq 0 ] || { echo "failed: seeds ${failed[*]}; their logs are in target/storm" >&2; exit 1; }

# the suite against a real vLLM; REAL_VLLM_TOOLS names the folder of the scripts that install and serve one, VLLM_TEST_URL one that runs
test-vllm *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    tools=${REAL_VLLM_TOOLS:-}
    if [ -z "$tools" ] && [ -z "${VLLM_TEST_URL:-}" ]; then
        echo "Set REAL_VLLM_TOOLS to the folder with install.sh and serve.sh, which start a vLLM, or VLLM_TEST_URL to the address of one that runs." >&2
        echo "Only the first can also be killed, drained, paused and overloaded." >&2
        exit 64
    fi
    if [ -n "$tools" ]; then
        echo "Installing vLLM, unless it is there (some minutes and 6 GB)."
        "$tools/install.sh" > /dev/null
        tools=$(cd "$tools" && pwd)
        export REAL_VLLM_TOOLS=$tools REAL_VLLM_REQUIRED=1
    fi
    {{ cargo }} test --release --test real_vllm -- --nocapture --test-threads=1 {{ arguments }}

# documents/s through the pipeline against requests/s of `vllm bench serve`, as a table; VLLM_RATIO_BAR=1 holds it to the bar
vllm-ratio:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -z "${REAL_VLLM_TOOLS:-}" ]; then
        echo "Set REAL_VLLM_TOOLS to the folder with install.sh and serve.sh, which start a vLLM." >&2
        exit 64
    fi
    tools=$(cd "$REAL_VLLM_TOOLS" && pwd)
    export REAL_VLLM_TOOLS=$tools
    venv=$("$tools/install.sh" | tail -n 1)/venv
    # What `vllm bench serve` needs to read prompts, and vLLM itself does not.
    "$venv/bin/python" -c 'import pandas' 2> /dev/null || "$venv/bin/pip" install --quiet pandas
    REAL_VLLM_REQUIRED=1 {{ cargo }} bench --bench vllm_ratio

# what exactly once costs on a real Apache Kafka, as a table for docs/performance.md
cost:
    {{ cargo }} build --release
    REAL_KAFKA_REQUIRED=1 KLP_TEST_BINARY=$PWD/{{ binary }} {{ cargo }} bench --bench guarantee_cost

# every bar in one table, and target/bars.json; BARS=w2,restart leaves rows, BENCH_PEERS names the folder with measure.py for those through HTTP
bench:
    {{ cargo }} build --release
    REAL_KAFKA_REQUIRED=1 KLP_TEST_BINARY=$PWD/{{ binary }} {{ cargo }} bench --bench bars

# the alternatives beside ours, in turns, on the same broker and the same simulated model
bench-compare:
    {{ cargo }} build --release
    BARS=peers REAL_KAFKA_REQUIRED=1 KLP_TEST_BINARY=$PWD/{{ binary }} {{ cargo }} bench --bench bars

# what a load costs Kafka, counted beside computed, as the tables of docs/scaling.md
scaling:
    {{ cargo }} bench --bench scaling

# how adaptive concurrency follows a server whose capacity changes: a table, and docs/concurrency.svg; TRACE_SECONDS=20 just tries it out
concurrency-trace:
    {{ cargo }} bench --bench concurrency_trace

# the pictures in docs/, in five minutes: the status page in Chromium, `check` and `results`, of a processor at work on the sandbox
screenshots:
    {{ cargo }} bench --profile dev --bench screenshots

# one static binary that needs no other file, at most 20 MB, in target/static: just static; for ARM: just static aarch64-unknown-linux-musl
static target="x86_64-unknown-linux-musl":
    #!/usr/bin/env bash
    set -euo pipefail
    # The same source is the same bytes: nothing of this machine's paths and of today's date gets in.
    export CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
    # Size first, where a build for daily work has its compile time; what handles every byte of a document stays fast.
    small=(
        --config 'profile.release.strip=true' --config 'profile.release.lto="fat"' --config 'profile.release.codegen-units=1'
        --config 'profile.release.panic="abort"' --config 'profile.release.package."*".opt-level="s"'
    )
    for fast in bytes crc32c graviola hyper kafka-protocol lz4_flex memchr rskafka ruzstd serde_json sha2 snap tokio zlib-rs; do
        small+=(--config "profile.release.package.$fast.opt-level=3")
    done
    if [ -n "${STATIC_MUSL_TOOL:-}" ]; then
        # A script that builds the first of the targets where rustup cannot fetch it, and prints the folder that it built in.
        [ "{{ target }}" = x86_64-unknown-linux-musl ] || { echo "STATIC_MUSL_TOOL builds x86_64-unknown-linux-musl alone" >&2; exit 64; }
        built=$("$STATIC_MUSL_TOOL" "${small[@]}" | tail -n 1)
    else
        rustup target list --installed | grep -qx '{{ target }}' || rustup target add '{{ target }}'
        remap="--remap-path-prefix=$PWD=/project --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
        # Rust's own linker, where the one of the system links for another processor.
        [ "{{ target }}" = "$(uname -m)-unknown-linux-musl" ] || remap="$remap -C linker=rust-lld"
        RUSTFLAGS="-C target-feature=+crt-static $remap" CC=/bin/false \
            {{ cargo }} build --release --locked --target '{{ target }}' "${small[@]}"
        built=${CARGO_TARGET_DIR:-target}/{{ target }}/release
    fi
    mkdir -p target/static
    cp "$built/kafka-llm-processor" target/static/kafka-llm-processor
    size=$(stat -c %s target/static/kafka-llm-processor)
    [ "$size" -le 20000000 ] || { echo "$size bytes are more than 20 MB" >&2; exit 1; }
    echo "target/static/kafka-llm-processor, $size bytes"
    sha256sum target/static/kafka-llm-processor

# everything that reads bytes from outside, on the corpus and what chance makes of it: just fuzz-corpus 60
fuzz-corpus seconds="10":
    FUZZ_SECONDS={{ seconds }} FUZZ_SEED=$RANDOM {{ cargo }} test --test fuzz_corpus -- --nocapture

# one of the targets of src/fuzzing.rs (or `all`, one after the other), guided by coverage: just fuzz kafka_answers 300; needs cargo-fuzz and a C++ compiler, no nightly
fuzz target="all" seconds="60":
    #!/usr/bin/env bash
    set -euo pipefail
    command -v cargo-fuzz > /dev/null || { echo "cargo install cargo-fuzz --locked" >&2; exit 1; }
    # The versions that the program is built with; the lock file of tests/fuzz is left out of the repository.
    cp Cargo.lock tests/fuzz/Cargo.lock
    targets={{ target }}
    [ "$targets" != all ] || targets=$({{ cargo }} fuzz list --fuzz-dir tests/fuzz)
    export CARGO_TARGET_DIR=$PWD/target/fuzz
    for target in $targets; do
        # What is found is kept beside the corpus, which stays small: what is worth it is copied by hand.
        found=target/fuzz/corpus/$target
        mkdir -p "$found" target/fuzz/artifacts
        {{ cargo }} fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "$PWD/$found" "$PWD/tests/fuzz/corpus/$target" -- \
            -max_total_time={{ seconds }} -rss_limit_mb=1024 -malloc_limit_mb=512 -timeout=10 -max_len=4096 -print_final_stats=1 \
            -artifact_prefix="$PWD/target/fuzz/artifacts/$target-"
    done

# formats, lints, dependency rules
lint:
    {{ cargo }} fmt --check
    {{ cargo }} clippy --all-targets -- -D warnings
    if command -v cargo-deny > /dev/null; then {{ cargo }} deny --log-level error --config .deny.toml check bans licenses sources; else echo "cargo-deny is not installed: dependency rules not checked (cargo install cargo-deny --locked)"; fi

# the library's documentation
doc:
    RUSTDOCFLAGS="-D warnings" {{ cargo }} doc --no-deps

# the Dockerfile, as BuildKit reads it
image-check:
    deploy/check/run image

# compose.yaml and its override, as Compose itself reads them
compose-check:
    deploy/check/run compose

# the services of compose.yaml as processes of this machine, on a real Apache Kafka: REAL_KAFKA_TOOLS names the folder of the scripts that start one
compose-native:
    {{ cargo }} build --release
    deploy/check/run native

# the Kubernetes files against current schemas, the rules with promtool
kubernetes-check:
    deploy/check/run kubernetes

# the systemd unit, and how exposed it is
systemd-check:
    deploy/check/run systemd

# what the image is made of: target/sbom.cdx.json (CycloneDX)
sbom:
    deploy/check/run sbom

[private]
sandbox-start:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -f {{ sandbox_pid }} ] && ps -p "$(cat {{ sandbox_pid }})" -o args= 2> /dev/null | grep -q ' sandbox$'; then
        echo "The sandbox already runs (process $(cat {{ sandbox_pid }})). Next: just run"
        exit
    fi
    for port in 9092 8000; do
        if (: < /dev/tcp/127.0.0.1/$port) 2> /dev/null; then
            echo "Port $port is taken by another program; stop it first (a Kafka or vLLM that already runs needs no 'just up': just run)." >&2
            exit 1
        fi
    done
    {{ cargo }} build --release
    mkdir -p target
    nohup {{ binary }} sandbox > {{ sandbox_log }} 2>&1 < /dev/null &
    pid=$!
    echo "$pid" > {{ sandbox_pid }}
    for _ in $(seq 150); do
        if ! kill -0 "$pid" 2> /dev/null; then
            echo "The sandbox ended at once. Its last words ({{ sandbox_log }}):" >&2
            tail -n 5 {{ sandbox_log }} >&2
            rm -f {{ sandbox_pid }}
            exit 1
        fi
        if (: < /dev/tcp/127.0.0.1/9092) 2> /dev/null && (: < /dev/tcp/127.0.0.1/8000) 2> /dev/null; then
            echo "Ready (process $pid): sandbox Kafka on localhost:9092, simulated vLLM on http://localhost:8000. Next: just run"
            exit
        fi
        sleep 0.2
    done
    echo "The sandbox does not answer after 30 s; see {{ sandbox_log }}. It is stopped again." >&2
    kill "$pid"
    rm -f {{ sandbox_pid }}
    exit 1

[private]
sandbox-stop:
    #!/usr/bin/env bash
    set -euo pipefail
    [ -f {{ sandbox_pid }} ] || exit 0
    pid=$(cat {{ sandbox_pid }})
    # The number may have been given to another program since.
    if ps -p "$pid" -o args= 2> /dev/null | grep -q ' sandbox$'; then
        kill "$pid"
        for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || break; sleep 0.2; done
        if kill -0 "$pid" 2> /dev/null; then echo "The sandbox (process $pid) does not end." >&2; exit 1; fi
        echo "The sandbox (process $pid) is stopped; its topics are gone."
    fi
    rm -f {{ sandbox_pid }}
