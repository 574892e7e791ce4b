#!/bin/bash
# Runs make targets one after the other and says how long each took.   usage: hack/timed.sh TARGET...
source "$(dirname "$0")/lib.sh"
cd "$REPO"
table=''
for target; do
  from=$SECONDS
  make "$target" || die "make $target failed after $((SECONDS - from)) s"
  table+=$(printf '%-12s %5d s' "$target" $((SECONDS - from)))$'\n'
done
printf '%s%-12s %5d s\n' "$table" total $SECONDS
