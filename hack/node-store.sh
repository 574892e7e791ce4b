# What the containerd of each worker begins with, so that a new cluster need not pull and unpack gigabytes again. Sourced.
# The images are unpacked once into a template; a worker gets a copy of it whose files are hard links, as containerd never writes to a
# blob or to a committed snapshot (containers get a snapshot of their own above those). Only for an engine on this machine's file system.
# shellcheck shell=bash
STORES=$CACHE/nodes
SHARED=(io.containerd.content.v1.content/blobs io.containerd.snapshotter.v1.overlayfs/snapshots)

# have_images REF...: pulls these, and removes what others the local registry gave earlier
have_images() {
  local ref
  for ref; do ctr images pull --plain-http "$ref" >/dev/null || return; done
  ctr images list -q | awk -v ours="localhost:$REGISTRY_PORT/" -v kept=" $* " 'index($0, ours) == 1 && !index(kept, " " $0 " ")' |
    xargs -r ctr images remove --sync >/dev/null
}

# fill_template NODE-IMAGE: what that image brings, and the project's images as far as they are built
fill_template() {
  local refs=()
  [ ! -e "$BUILD/images.env" ] || mapfile -t refs < <(sed -n 's/^[A-Z_]*_IMAGE=//p' "$BUILD/images.env")
  [ "$(cat "$STORES/template.has" 2>/dev/null)" = "$1 ${refs[*]}" ] || timed "the workers' images" unpack "$1" "${refs[@]}"
}

unpack() { # NODE-IMAGE REF...
  local template=$STORES/template of=$1 id; shift
  rm -f "$STORES/template.has"
  if [ "$(cat "$STORES/template.of" 2>/dev/null)" != "$of" ]; then
    rm -rf "$template" "$STORES/template.of"; mkdir -p "$template"
    id=$(docker create "$of")
    docker cp -q "$id:/var/lib/containerd/." "$template"
    docker rm "$id" >/dev/null
    echo "$of" >"$STORES/template.of"
  fi
  if [ $# = 0 ] || with_containerd "$template" have_images "$@"; then
    echo "$of $*" >"$STORES/template.has"
  else
    say "the images could not be unpacked for the workers, which will pull them; see $CACHE/containerd.log"
  fi
}

# make_stores COUNT: worker-1, worker-2, ... from the template; what is not known to stay as it is, databases above all, is copied
make_stores() {
  local number part store
  for number in $(seq "$1"); do
    store=$STORES/worker-$number
    mkdir -p "${SHARED[@]/#/$store/}"
    tar -C "$STORES/template" "${SHARED[@]/#/--exclude=./}" -c . | tar -C "$store" -x
    for part in "${SHARED[@]}"; do cp -al "$STORES/template/$part/." "$store/$part"; done
  done
}

# Once no node uses them.
remove_stores() { rm -rf "$STORES"/worker-*; }

# with_stores: the cluster's configuration with a store for each worker
with_stores() {
  awk -v stores="$STORES" '{print} /^- role: worker$/ {
    printf "  extraMounts:\n  - {hostPath: %s/worker-%d, containerPath: /var/lib/containerd}\n", stores, ++number}'
}
