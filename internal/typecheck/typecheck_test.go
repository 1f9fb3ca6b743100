package typecheck_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/typecheck"
)

// TestModuleForMacOS checks everything that runs on a Mac, the cgo driver
// included.
func TestModuleForMacOS(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for _, p := range []string{"host", "proto", "internal", "cmd/dhow", "cmd/dhowd", "cmd/dhow-tray"} {
		if _, err := os.Stat(filepath.Join(root, p)); err == nil {
			patterns = append(patterns, "./"+p+"/...")
		}
	}
	for _, arch := range []string{"arm64", "amd64"} {
		if err := typecheck.Check(root, "darwin", arch, patterns...); err != nil {
			t.Errorf("darwin/%s:\n%v", arch, err)
		}
	}
}

func TestErrorsAreCaught(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string // "" is no error
	}{
		"clean": {map[string]string{"a.go": "package a\n\nimport \"C\"\n\nimport \"net\"\n\nvar _ net.Conn\nvar n = int(C.getpid())\n"}, ""},
		"unknown method": {map[string]string{
			"a_darwin.go": "package a\n\nimport \"net\"\n\nfunc f(c net.Conn) { c.Reed(nil) }\n"}, "c.Reed undefined"},
		"wrong argument": {map[string]string{
			"a.go": "package a\n\nimport \"os\"\n\nfunc f() { os.Exit(\"1\") }\n"}, `cannot use "1"`},
		"in a cgo file": {map[string]string{
			"a.go": "package a\n\n// int x;\nimport \"C\"\n\nvar s string = 1\nvar _ = C.x\n"}, "cannot use 1"},
		"other system's file": {map[string]string{
			"a.go": "package a\n", "a_linux.go": "package a\n\nvar s string = 1\n"}, ""},
		"syntax":         {map[string]string{"a.go": "package a\n\nfunc {\n"}, "a.go:3"},
		"missing import": {map[string]string{"a.go": "package a\n\nimport _ \"example.com/nowhere\"\n"}, "nowhere"},
		"across packages": {map[string]string{
			"b/b.go": "package b\n\nfunc F(int) {}\n", "a.go": "package a\n\nimport \"example.com/m/b\"\n\nfunc f() { b.F(\"\") }\n"}, `cannot use ""`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.files["go.mod"] = "module example.com/m\n\ngo 1.24\n"
			for f, text := range c.files {
				f = filepath.Join(dir, f)
				if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := typecheck.Check(dir, "darwin", "arm64", "./...")
			switch {
			case c.want == "" && err != nil:
				t.Errorf("err = %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("err = %v, want %q in it", err, c.want)
			}
		})
	}
	if err := typecheck.Check(t.TempDir(), "darwin", "vax", "."); err == nil {
		t.Error("an unknown architecture is no error")
	}
}
