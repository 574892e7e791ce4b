// registry-gc frees the blobs of deleted manifests before the registry starts, and never keeps it from starting.
//
// distribution frees blobs only by a command of its own that must run while nothing is pushed: the first container of the registry's pod is
// the place. There a failure would keep the registry away, and the command fails on an empty volume (no repositories yet) and on any manifest that
// cannot be read. So whatever happens to it, this program says so and ends with 0:
//
//	registry-gc /usr/bin/registry garbage-collect /etc/distribution/config.yml
//
// A command that takes longer than ten minutes is ended; what it freed until then stays freed, and the next start goes on. One that was killed
// together with this program (out of memory) left the file ATTEMPT behind, in the pod's own /tmp, and is not tried again in this pod.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

const attempt = "/tmp/registry-gc"

// The registry is away meanwhile, and kubelets that pull artifacts try again every few minutes at the latest.
const limit = 10 * time.Minute

// repositories is where distribution keeps them below its root.
const repositories = "docker/registry/v2/repositories"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: registry-gc COMMAND [ARGUMENT...]; it runs once in a pod and its failure is told, not passed on")
		return
	}
	if root := os.Getenv("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY"); root != "" && isAbsent(root+"/"+repositories) {
		fmt.Println("registry-gc: the volume has no repositories yet")
		return
	}
	if err := collect(attempt, limit, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "registry-gc: nothing more was freed, the registry starts all the same:", err)
	}
}

func isAbsent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// collect runs the command, unless an earlier attempt left its file behind.
func collect(attempt string, limit time.Duration, command []string) error {
	file, err := os.OpenFile(attempt, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return errors.New("the last attempt in this pod was killed; does registry.resources leave too little memory?")
		}
		return err
	}
	defer os.Remove(attempt)
	defer file.Close()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	run := exec.CommandContext(ctx, command[0], command[1:]...)
	run.Stdout, run.Stderr = os.Stdout, os.Stderr
	err = run.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("%s took longer than %s", strings.Join(command, " "), limit)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return nil
}
