#!/usr/bin/env bash
# Runs the tests of Keras models under TensorFlow and JAX: `keras_backends.sh PYTHON`. Each backend gets an environment
# in .venvs that sees what PYTHON sees and adds the backend, pinned below. Called by the Makefile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base=$(realpath -s "${1:?the python that sned is installed for}")
tests="tests/surgery/keras tests/keras_training tests/export/test_keras.py"

site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

run() {  # name of the backend, then what to install beside what is there
    local backend=$1 venv=.venvs/$1; shift
    if [ ! -f "$venv/.sned" ]; then
        "$base" -m venv --clear --without-pip "$venv"
        { site "$base"; echo "$PWD/src"; echo "$PWD"; } > "$(site "$venv/bin/python")/beside.pth"
        "$base" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check --no-deps "$@"
        touch "$venv/.sned"
    fi
    KERAS_BACKEND=$backend TF_CPP_MIN_LOG_LEVEL=3 "$venv/bin/python" -m pytest $tests -q
}

run tensorflow tensorflow-cpu==2.21.0 astunparse gast google_pasta opt_einsum six termcolor wrapt grpcio wheel requests \
    urllib3 idna certifi charset_normalizer libclang ai-edge-litert==2.3.0 ai-edge-quantizer==0.10.0 \
    backports.strenum immutabledict
run jax jax==0.10.2 jaxlib==0.10.2 opt_einsum
