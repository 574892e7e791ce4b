package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOutcomes(t *testing.T) {
	for name, row := range map[string]struct {
		command []string
		limit   time.Duration
		want    string
	}{
		"well":      {[]string{"true"}, time.Minute, ""},
		"failed":    {[]string{"false"}, time.Minute, "false: exit status 1"},
		"absent":    {[]string{"/no/such/command"}, time.Minute, "no such file"},
		"never end": {[]string{"sleep", "60"}, 50 * time.Millisecond, "took longer than 50ms"},
	} {
		t.Run(name, func(t *testing.T) {
			mark := filepath.Join(t.TempDir(), "attempt")
			err := collect(mark, row.limit, row.command)
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Fatalf("got %v, want %q", err, row.want)
			}
			if !isAbsent(mark) {
				t.Fatal("an attempt that ended leaves nothing behind")
			}
		})
	}
}

func TestAnAttemptThatWasKilledIsNotRepeated(t *testing.T) {
	mark, ran := filepath.Join(t.TempDir(), "attempt"), filepath.Join(t.TempDir(), "ran")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := collect(mark, time.Minute, []string{"touch", ran}); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Fatalf("got %v", err)
	}
	if !isAbsent(ran) {
		t.Fatal("it ran")
	}
}
