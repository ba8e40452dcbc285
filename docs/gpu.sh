#!/bin/bash
# docs/gpu.sh base 25 0      checks and speeds of a GPU, each once, then the study `base` in 25 minutes
# docs/gpu.sh base 25 9      the same in pieces of 9 minutes: again until the study is at its end
# What follows goes to `chexmix demo`. In the root of a checkout, with chexmix, pytest and papermill on the path.
set -euo pipefail
preset=$1 minutes=$2 piece=${3:-0}
own=${CHEXMIX_RUNS:-$PWD/runs}
checks=$own/gpu

sizes=$(python - "$preset" <<'END'
import sys
from chexmix.core import get_settings, UserError
try: settings = get_settings(sys.argv[1])
except UserError as error: sys.exit(f'chexmix: {error}')  # before the checks, which take minutes
print(settings.n_studies, settings.image_size)
END
)

left() {  # seconds of this piece; a day where there are no pieces
  python -c "print(max(1, round(60 * $piece) - $SECONDS) if $piece else 86400)"
}

once() {  # name, command …: unless it has been run; one that does not fit into two pieces is given up
  local name=$1 code=0
  shift
  [ ! -f "$checks/$name" ] || return 0
  echo "$name: $*"
  timeout "$(left)" env CHEXMIX_RUNS="$checks" "$@" || code=$?
  if [ "$piece" != 0 ] && [ $code = 124 ] && [ ! -f "$checks/$name.begun" ]; then
    touch "$checks/$name.begun"
    echo "the $piece minutes of this piece are over within the $name. To go on: the same command; it begins anew"
    exit 0
  fi
  [ $code = 0 ] || echo "the $name failed: see above" >&2
  echo "exit code $code" >"$checks/$name"
}

draw_meanwhile() {  # the cores draw the study's radiographs while the tests use the GPU, as far as they get
  [ ! -f "$checks/tests" ] || return 0
  read -r n size <<<"$sizes"
  nice -n 19 chexmix phantom --n "$n" --size "$size" "$own/$preset/phantoms" >/dev/null 2>&1 &
  drawing=$!
  trap stop_drawing EXIT
}

stop_drawing() {  # the study goes on with what is there
  [ -n "${drawing:-}" ] || return 0
  kill "$drawing" 2>/dev/null || true
  wait "$drawing" || true
  drawing=
}

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  mkdir -p "$checks"
  [ $# -gt 3 ] || draw_meanwhile  # further words may name other studies
  once tests python -m pytest -q -rs -m gpu tests
  stop_drawing  # nothing else runs while speeds are measured
  once speeds papermill --cwd nbs nbs/13_benchmarks.ipynb "$checks/speeds.ipynb" -p run tiny -p files 10
else echo 'checks and speeds of a GPU: not run, torch finds none on this machine'
fi
if [ "$piece" != 0 ] && [ "$SECONDS" -gt 20 ]; then  # the checks took a part of it
  if [ "$(left)" -lt 120 ]; then
    echo "the $piece minutes of this piece are over. To go on: the same command"
    exit 0
  fi
  piece=$(python -c "print(round($(left) / 60, 2))")
fi
chexmix demo --preset "$preset" --run "$preset" --minutes "$minutes" --piece "$piece" "${@:4}"

# The finished weights, small enough to carry away: in bfloat16, in pieces of at most 16 MB that are joined when opened
if [ -f "$own/$preset/notebooks/11_results.ipynb" ] && [ ! -d "$own/${preset}_weights" ]; then
  chexmix export --run "$preset" -o "$own/${preset}_weights" --piece-mb 16
fi
if grep -qs '^exit code [1-9]' "$checks/tests" "$checks/speeds"; then
  echo "a check has failed, see above; to run it again, delete its file in $checks" >&2
  exit 1
fi
