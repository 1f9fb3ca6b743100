package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"dhow/internal/durable"
)

func TestWriteFileReplacesAndLeavesNoTemporary(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "config.json")
	for _, data := range []string{"old", "new"} {
		if err := durable.WriteFile(name, []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(name); string(got) != data {
			t.Errorf("content = %q, want %q", got, data)
		}
	}
	ents, _ := os.ReadDir(dir)
	if len(ents) != 1 {
		t.Errorf("%d entries left, want 1: %v", len(ents), ents)
	}
}

func TestWriteFileOntoADirectoryLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(name, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(name, []byte("x"), 0o600); err == nil {
		t.Fatal("no error")
	}
	ents, _ := os.ReadDir(dir)
	if len(ents) != 1 {
		t.Errorf("%d entries left, want 1: %v", len(ents), ents)
	}
}
