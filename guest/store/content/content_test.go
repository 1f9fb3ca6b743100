//go:build linux

package content_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/content"
	"dhow/guest/store/storetest"
)

func TestLocal(t *testing.T) {
	storetest.Content(t, func(t *testing.T) content.Store { return open(t, t.TempDir()) })
}

func TestMemory(t *testing.T) {
	storetest.Content(t, func(*testing.T) content.Store { return storetest.NewMemory() })
}

func open(t *testing.T, dir string) *content.Local {
	t.Helper()
	l, err := content.OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLocalSurvivesAReopenAndResumes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	d := storetest.PutBlob(t, l, []byte("blob"))
	w, err := l.Writer(t.Context(), "r", ocispec.Descriptor{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	// No Close: the process is gone.
	l = open(t, dir)
	if _, err := l.Info(t.Context(), d.Digest); err != nil {
		t.Error(err)
	}
	w, err = l.Writer(t.Context(), "r", ocispec.Descriptor{})
	if err != nil || w.Offset() != 4 || w.Digest() != digest.FromString("half") {
		t.Errorf("resumed: %v", err)
	}
	_ = w.Close()
	if err := l.DropIngests(); err != nil {
		t.Error(err)
	}
	if ents, _ := os.ReadDir(filepath.Join(dir, "ingest")); len(ents) != 0 {
		t.Errorf("left: %v", ents)
	}
}

func TestLocalTakesADamagedIngestForNone(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"state is cut":     func(dir string) error { return os.WriteFile(filepath.Join(dir, "state"), []byte(`{"ref`), 0o600) },
		"state is missing": func(dir string) error { return os.Remove(filepath.Join(dir, "state")) },
		"data is missing":  func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			l := open(t, root)
			w, err := l.Writer(t.Context(), "r", ocispec.Descriptor{})
			if err == nil {
				_, err = w.Write([]byte("old"))
			}
			if err == nil {
				err = w.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			ents, err := os.ReadDir(filepath.Join(root, "ingest"))
			if err != nil || len(ents) != 1 {
				t.Fatal(ents, err)
			}
			if err := damage(filepath.Join(root, "ingest", ents[0].Name())); err != nil {
				t.Fatal(err)
			}
			w, err = l.Writer(t.Context(), "r", ocispec.Descriptor{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = w.Close() }()
			if w.Offset() != 0 {
				t.Errorf("resumed at %d", w.Offset())
			}
		})
	}
}

func TestLocalIgnoresForeignFiles(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "blobs/sha256/README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Walk(t.Context(), func(i content.Info) error { t.Errorf("saw %v", i); return nil }); err != nil {
		t.Error(err)
	}
}
