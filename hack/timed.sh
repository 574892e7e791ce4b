#!/bin/bash
# Runs make targets one after the other and says how long each took.
#   usage: hack/timed.sh TARGET... [-- TARGET...]... [then TARGET... [-- TARGET...]...]...
# Each -- begins a lane; lanes run side by side. What follows `then` begins once all before it is done.
# The output of the second lane and of those after it goes to build/lane-N.log and is shown when all have ended. A lane stops at its first
# failure and lets the others end. Whoever ends this script ends all, by process group, and gives pytest a minute to take away what its
# fixtures started.
source "$(dirname "$0")/lib.sh"
cd "$REPO"
TIMES=$(mktemp -d) PIDS=() FAILED=''
exec 3>&2

# The first lane waits half of its time, and the others take what it leaves: by nice, a tenth or so less for each step.
# That counts against all that is not of this session, as the pods of the cluster are, only where kernel.sched_autogroup_enabled is 0.
rank() { # LANE: its niceness
  [ "$1" = 1 ] && echo 0 || echo 15
}

# lane NUMBER TARGET...: the times go to a file of that number, line by line
lane() {
  local number=$1 target from; shift
  for target; do
    from=$SECONDS
    # env gives make and pytest the usual answer to an interrupt, which a shell in the background has not
    if nice -n "$(rank "$number")" env --default-signal=INT make "$target"; then
      printf '%-20s %5d s\n' "$target" $((SECONDS - from)) >>"$TIMES/$number"
    else
      printf '%-20s %5d s  failed\n' "$target" $((SECONDS - from)) >>"$TIMES/$number"
      say "make $target failed after $((SECONDS - from)) s" 2>&3
      return 1
    fi
  done
}

end_lanes() {
  local pid
  for pid in "${PIDS[@]}"; do kill -INT -- "-$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]}"; do
    for _ in $(seq 60); do kill -0 -- "-$pid" 2>/dev/null || break; sleep 1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
}

side_by_side() { # LANE...: the targets of each, one a line
  local number=0 words targets log=$BUILD/lane
  PIDS=()
  set -m  # a process group for each
  for words; do
    number=$((number + 1)); mapfile -t targets <<<"$words"
    if [ $number = 1 ]; then
      (lane 1 "${targets[@]}" || exit 1) </dev/null &
    else
      say "beside it: ${targets[*]} (tail -f ${log#"$REPO"/}-$number.log)"
      (lane $number "${targets[@]}" || exit 1) >"$log-$number.log" 2>&1 </dev/null &
    fi
    PIDS+=($!)
  done
  set +m
  trap 'end_lanes; exit 130' INT TERM HUP
  for number in "${!PIDS[@]}"; do wait "${PIDS[number]}" || FAILED=1; done
  trap - INT TERM HUP
  shift
  number=1
  for words; do
    number=$((number + 1))
    printf '\n==> beside it: %s\n' "${words//$'\n'/ }"
    cat "$log-$number.log"
  done
}

run_stage() { # WORD...: lanes of targets
  local lanes=('') word targets
  for word; do
    if [ "$word" = -- ]; then lanes+=(''); else lanes[-1]+=${lanes[-1]:+$'\n'}$word; fi
  done
  if [ ${#lanes[@]} -gt 1 ]; then side_by_side "${lanes[@]}"; return; fi
  mapfile -t targets <<<"${lanes[0]}"
  lane 1 "${targets[@]}" || FAILED=1
}

stage=()
for word in "$@" then; do
  if [ "$word" != then ]; then stage+=("$word"); continue; fi
  [ -n "$FAILED" ] || run_stage "${stage[@]}"
  stage=()
done
cat "$TIMES/1"
for times in "$TIMES"/[2-9]; do [ ! -e "$times" ] || sed 's/$/  beside/' "$times"; done
printf '%-20s %5d s\n' total $SECONDS
rm -rf "$TIMES"
[ -z "$FAILED" ] || die "failed: see the table"
