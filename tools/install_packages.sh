#!/usr/bin/env bash
# Installs the locked packages and Jobwire itself into a virtual environment, and says how far it
# is: it takes a minute.
# Usage: install_packages.sh FOLDER
set -euo pipefail

python=$1/bin/python
lock=requirements/dev.txt
pip=("$python" -m pip install --disable-pip-version-check)

echo "Installing the locked packages into $1"
# Those for other systems and versions are in the lock file as well, so the count may end before it.
PYTHONUNBUFFERED=1 "${pip[@]}" --no-color --progress-bar off --require-hashes -r "$lock" \
    | awk -v all="$(grep -c '^[^ #].*==' "$lock")" -v terminal="$([ -t 1 ] && echo 1 || echo 0)" '
        function show(text) {
            if (terminal) printf "\r\033[K  %s", text; else print "  " text
            fflush()
        }
        /^(Collecting|Requirement already satisfied)/ {
            count += 1
            if (terminal || count % 10 == 0) show(count " of at most " all " packages")
        }
        /^Installing collected packages/ { show("unpacking " count " packages") }
        END { if (terminal) print "" }
    '
"${pip[@]}" --quiet --no-deps --no-build-isolation --editable .
