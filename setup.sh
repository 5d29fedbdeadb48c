# To be sourced (bash or zsh): `source setup.sh`. Sets up the environment to run the law tasks of this checkout.
#   VENV       virtual environment to activate (default: .venv of this checkout, when it exists and none is active)
#   DATA_PATH  where all outputs go (default: output/ of this checkout); an exported value wins over local_setup.sh
#   LAW_HOME   where law keeps its index (default: .law of this checkout, or of DATA_PATH where that is read-only)

_bhive_mltf_setup() {
    local here venv data_path index
    if [ -n "${ZSH_VERSION:-}" ]; then
        here="$(eval 'dirname "${(%):-%x}"')"
    else
        here="$(dirname "${BASH_SOURCE[0]}")"
    fi
    here="$(cd "$here" && pwd)" || return 1
    data_path="${DATA_PATH:-}"

    venv="${VENV:-$here/.venv}"
    if [ -z "${VIRTUAL_ENV:-}" ] && [ -f "$venv/bin/activate" ]; then
        . "$venv/bin/activate"
    fi

    case ":${PYTHONPATH:-}:" in
        *":$here:"*) ;;
        *) export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" ;;
    esac
    export LAW_CONFIG_FILE="$here/law.cfg"
    # an upstream checkout that is set up already keeps its variable, so that its configs are found too
    export B_HIVE_DIR="${B_HIVE_DIR:-$here}"
    export DATA_PATH="$here/output"
    if [ -f "$here/local_setup.sh" ]; then
        . "$here/local_setup.sh"
    fi
    if [ -n "$data_path" ]; then
        export DATA_PATH="$data_path"
    fi
    if ! mkdir -p "$DATA_PATH" 2> /dev/null || [ ! -w "$DATA_PATH" ]; then
        echo "$DATA_PATH cannot be written: export DATA_PATH, a folder of yours for all outputs" >&2
        return 1
    fi
    if [ -z "${LAW_HOME:-}" ]; then
        if [ -w "$here" ]; then LAW_HOME="$here/.law"; else LAW_HOME="$DATA_PATH/.law"; fi
    fi
    export LAW_HOME
    if ! mkdir -p "$LAW_HOME" 2> /dev/null || [ ! -w "$LAW_HOME" ]; then
        echo "$LAW_HOME cannot be written: export LAW_HOME, a folder of yours for the index of law" >&2
        return 1
    fi

    if ! command -v law > /dev/null; then
        echo "law is not installed here: run 'make venv' in $here, or activate an environment that has it" >&2
        return 1
    fi
    index="$LAW_HOME/index"
    if [ ! -f "$index" ] || [ -n "$(find "$here/bhive_mltf/law" "$here/law.cfg" -newer "$index" \
        \( -name '*.py' -o -name law.cfg \) | head -n 1)" ]; then
        law index --quiet || return 1
    fi
    # law's completion reads variables that may be unset
    case "$-" in
        *u*) set +u; . "$(law completion)"; set -u ;;
        *) . "$(law completion)" ;;
    esac
}

_bhive_mltf_setup "$@"
_bhive_mltf_status=$?
unset -f _bhive_mltf_setup
eval "unset _bhive_mltf_status; return $_bhive_mltf_status 2> /dev/null || exit $_bhive_mltf_status"
