#!/bin/bash
# Runs make targets one after the other and says how long each took.
#   usage: hack/timed.sh TARGET... [-- TARGET... -- TARGET...]     those after -- in two lanes side by side, once the first ones are done
# The output of the second lane goes to build/beside.log and is shown when both have ended. A lane stops at its first failure and lets the
# other end. Whoever ends this script ends both, by process group, and gives pytest a minute to take away what its fixtures started.
source "$(dirname "$0")/lib.sh"
cd "$REPO"
TIMES=$(mktemp -d) LOG=$BUILD/beside.log LANES=()
exec 3>&2

# The first lane waits for the cluster most of its time, and the other takes what it leaves: by nice, a tenth or so less for each step.
# The integration tests promise some things in seconds (a leader's successor within twenty), so they get more of it than the rest.
# It counts against all that is not of this session, as the pods of the cluster are, only where kernel.sched_autogroup_enabled is 0.
rank() { # LANE TARGET: its niceness
  case $1:$2 in second:integration) echo 5 ;; second:*) echo 15 ;; *) echo 0 ;; esac
}

# lane NAME TARGET...: the times go to a file of that name, line by line
lane() {
  local name=$1 target from; shift
  for target; do
    from=$SECONDS
    if nice -n "$(rank "$name" "$target")" env --default-signal=INT make "$target"; then
      printf '%-12s %5d s\n' "$target" $((SECONDS - from)) >>"$TIMES/$name"
    else
      printf '%-12s %5d s  failed\n' "$target" $((SECONDS - from)) >>"$TIMES/$name"
      say "make $target failed after $((SECONDS - from)) s" 2>&3
      return 1
    fi
  done
}

# The end of a script that is told to end. `env` gives make and pytest the usual answer to an interrupt, which a shell in the background has not.
end_lanes() {
  local group
  for group in "${LANES[@]}"; do kill -INT -- "-$group" 2>/dev/null || true; done
  for group in "${LANES[@]}"; do
    for _ in $(seq 60); do kill -0 -- "-$group" 2>/dev/null || break; sleep 1; done
    kill -KILL -- "-$group" 2>/dev/null || true
  done
}

side_by_side() { # FILE-OF-FIRST FILE-OF-SECOND: each with one target a line; sets FAILED
  local first second
  mapfile -t first <<<"$1"; mapfile -t second <<<"$2"
  set -m
  (lane first "${first[@]}" || exit 1) </dev/null & LANES+=($!)
  (lane second "${second[@]}" || exit 1) >"$LOG" 2>&1 </dev/null & LANES+=($!)
  set +m
  trap 'end_lanes; exit 130' INT TERM HUP
  say "beside it: make ${second[*]} (tail -f ${LOG#"$REPO"/})"
  wait "${LANES[0]}" || FAILED=1
  wait "${LANES[1]}" || FAILED=1
  printf '\n==> what ran beside: make %s\n' "${second[*]}"
  cat "$LOG"
}

FAILED='' groups=('')
for word; do
  if [ "$word" = -- ]; then groups+=(''); else groups[-1]+=${groups[-1]:+$'\n'}$word; fi
done
mapfile -t alone <<<"${groups[0]}"
lane alone "${alone[@]}" || FAILED=1
if [ -z "$FAILED" ] && [ ${#groups[@]} = 3 ]; then side_by_side "${groups[1]}" "${groups[2]}"; fi
cat "$TIMES"/alone "$TIMES"/first 2>/dev/null || true
sed 's/$/  beside/' "$TIMES/second" 2>/dev/null || true
printf '%-12s %5d s\n' total $SECONDS
rm -rf "$TIMES"
[ -z "$FAILED" ] || die "failed: see the table"
