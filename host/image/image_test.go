package image_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/host/image"
	"dhow/internal/errdefs"
)

// write makes an image in dir whose files hold the given content.
func write(t *testing.T, dir, arch string, files map[string]string) {
	t.Helper()
	m := image.Manifest{Version: "1", Arch: arch, KernelVersion: "6.1", Cmdline: "quiet", Files: map[string]image.File{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		sum := sha256.Sum256([]byte(content))
		m.Files[name] = image.File{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content))}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func whole() map[string]string {
	return map[string]string{image.Kernel: "kernel", image.Initrd: "initrd", image.Root: "root"}
}

func TestFindOrder(t *testing.T) {
	d := t.TempDir()
	s := image.Search{Executable: filepath.Join(d, "bin", "dhowd"), Arch: "amd64"}
	if _, err := image.Find(s); !errdefs.Is(err, errdefs.NotFound) || !strings.Contains(err.Error(), "DHOW_IMAGE") {
		t.Fatalf("nowhere: %v", err)
	}
	for _, at := range []string{filepath.Join(d, "build/out/image/amd64"), filepath.Join(d, "share/dhow/image/amd64")} {
		write(t, at, "amd64", whole())
		i, err := image.Find(s)
		if err != nil || i.Dir != at {
			t.Fatalf("found %+v, %v; want the one in %s", i, err, at)
		}
	}
	s.Override = filepath.Join(d, "mine")
	if _, err := image.Find(s); !errors.Is(err, os.ErrNotExist) || !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("an override without image: %v; must not fall back", err)
	}
	write(t, s.Override, "amd64", whole())
	if i, err := image.Find(s); err != nil || i.Dir != s.Override || i.Cmdline != "quiet" {
		t.Fatalf("%+v, %v", i, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, breakIt := range map[string]func(dir string) error{
		"is for": func(dir string) error { write(t, dir, "arm64", whole()); return nil },
		"does not name the file": func(dir string) error {
			write(t, dir, "amd64", map[string]string{image.Kernel: "k", image.Initrd: "i"})
			return nil
		},
		"bytes": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, image.Root), []byte("longer root"), 0o644)
		},
		"read":      func(dir string) error { return os.Remove(filepath.Join(dir, image.Initrd)) },
		"malformed": func(dir string) error { return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("{"), 0o644) },
	} {
		dir := filepath.Join(t.TempDir(), "i")
		write(t, dir, "amd64", whole())
		if err := breakIt(dir); err != nil {
			t.Fatal(err)
		}
		_, err := image.Open(dir, "amd64")
		if !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestVerify(t *testing.T) {
	dir, cache := t.TempDir(), filepath.Join(t.TempDir(), "seen.json")
	write(t, dir, "amd64", whole())
	i, err := image.Open(dir, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Verify(t.Context(), cache); err != nil {
		t.Fatal(err)
	}
	// Same size, same times: the cache says it was good, so it is not read
	// again. (That is what makes a start cheap; it guards against accidents.)
	root := filepath.Join(dir, image.Root)
	st, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, []byte("toor"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(root, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := i.Verify(t.Context(), cache); err != nil {
		t.Fatalf("an unchanged file was hashed again: %v", err)
	}
	if err := i.Verify(t.Context(), ""); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), image.Root) {
		t.Fatalf("without cache: %v", err)
	}
	now := time.Now().Add(time.Second)
	if err := os.Chtimes(root, now, now); err != nil {
		t.Fatal(err)
	}
	if err := i.Verify(t.Context(), cache); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), image.Root) {
		t.Fatalf("a changed file passed: %v", err)
	}
	// A broken cache costs time, not the start.
	if err := os.WriteFile(cache, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "amd64", whole())
	if err := i.Verify(t.Context(), cache); err != nil {
		t.Fatal(err)
	}
}
