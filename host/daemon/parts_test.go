package daemon

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDataDiskGrowsAndNeverShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data.img")
	if err := ensureDisk(path, 8<<20); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 8<<20-4); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int64]int64{16 << 20: 16 << 20, 4 << 20: 16 << 20} {
		if err := ensureDisk(path, size); err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat() // the same file, not a new one
		if err != nil || (size == 16<<20 && st.Size() != want) {
			t.Fatalf("%v, %v", st.Size(), err)
		}
		var b [4]byte
		if _, err := f.ReadAt(b[:], 8<<20-4); err != nil || string(b[:]) != "data" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	if st, _ := f.Stat(); st.Size() != 16<<20 {
		t.Fatalf("%d bytes at the end", st.Size())
	}
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for range 2 { // the second opens what the first left
		l, err := openLog(path, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if n, err := l.Write(bytes.Repeat([]byte("x"), 99)); n != 99 || err != nil {
				t.Fatal(n, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{path, path + ".1"} {
		if st, err := os.Stat(p); err != nil || st.Size() > 1000 || st.Size() < 99 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
}

func TestCertificates(t *testing.T) {
	d := t.TempDir()
	block := func(kind, s string) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(s)}))
	}
	for name, content := range map[string]string{
		"sub/a.crt": "a comment\n" + block("CERTIFICATE", "a") + block("PRIVATE KEY", "secret") + block("CERTIFICATE", "b"),
		"b.pem":     block("CERTIFICATE", "b"),
		"junk":      "not PEM",
	} {
		p := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := string(certificates([]string{filepath.Join(d, "missing"), d}))
	if strings.Count(got, "BEGIN CERTIFICATE") != 2 || strings.Contains(got, "PRIVATE") {
		t.Errorf("got %s", got)
	}
}
