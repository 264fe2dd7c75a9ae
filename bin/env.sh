# Sourced by bin/serve and bin/test: makes .venv with the pinned dependencies, and puts it first on PATH.
#
#   prepare_env serve    what it takes to serve, the embedded model included
#   prepare_env test     that, and the tools that check the code
#
# A stamp in .venv holds a hash of all that decides what is installed, so that pip runs only if that changed.

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "Python 3.11 or later is needed, and none was found; name one with PYTHON=/path/to/python."
    return 1
}

has_nvidia_driver() {
    [[ -e /proc/driver/nvidia/version ]] || nvidia-smi -L >/dev/null 2>&1
}

pip_install() {
    .venv/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt "$@"
}

# Without an NVIDIA driver the CPU build of torch does, and is a tenth of the size. PyPI has no such build for
# Linux: it may be on an index that pip is configured with, and is on PyTorch's own.
install_torch() {
    local build=$1 version
    version=$(sed -n 's/^torch==//p' constraints.txt)
    if [[ $build == cpu ]]; then
        pip_install --retries 1 "torch==$version+cpu" 2>/dev/null && return
        say "  torch: no CPU build on the configured index, asking PyTorch's own"
        pip_install --retries 1 --timeout 20 --extra-index-url https://download.pytorch.org/whl/cpu \
            "torch==$version+cpu" 2>/dev/null && return
        say "  torch: no CPU build there either, installing the standard build"
    fi
    pip_install "torch==$version"
}

wanted_hash() {
    { .venv/bin/python -VV; echo "$1"; cat pyproject.toml constraints.txt bin/env.sh; } |
        .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

prepare_env() {
    local purpose=$1 build=cpu python stamp wanted
    has_nvidia_driver && build=cuda
    if [[ ! -x .venv/bin/python ]]; then
        python=$(find_python)
        say "Making .venv with $("$python" -V)"
        "$python" -m venv .venv
    fi
    wanted=$(wanted_hash "$build $PWD")
    stamp=.venv/.stamp-$purpose
    # What it takes to test includes what it takes to serve.
    if ! grep -qsx "$wanted" "$stamp" .venv/.stamp-test; then
        say "Installing the pinned dependencies into .venv (a minute or two, once)"
        pip_install pip setuptools
        install_torch "$build"
        pip_install --no-build-isolation --editable '.[demo]'
        if [[ $purpose == test ]]; then pip_install --group dev; fi
        printf '%s\n' "$wanted" >"$stamp"
    fi
    export VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH
}
