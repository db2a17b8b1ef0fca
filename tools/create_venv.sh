#!/usr/bin/env bash
# Makes a virtual environment with the first Python >= 3.11 that there is, unless the
# folder holds a working one. PYTHON=… picks another interpreter.
# Usage: create_venv.sh FOLDER
set -euo pipefail

folder=$1
recent='import sys; sys.exit(sys.version_info < (3, 11))'

if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c "$recent" \
    && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

# Every candidate is run, because version managers leave launchers of that name on the
# path which fail when started.
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c "$recent" >/dev/null 2>&1; then
        echo "Making $folder with $("$candidate" --version)"
        if ! "$candidate" -m venv --clear "$folder"; then
            echo "$candidate has no working venv module: on Debian and Ubuntu," \
                "apt-get install python3-venv" >&2
            exit 1
        fi
        exit 0
    fi
done

echo "Jobwire needs Python 3.11 or newer, and none was found: install one, or name it with" \
    "PYTHON=/path/to/python3 make install" >&2
exit 1
