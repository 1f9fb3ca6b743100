//go:build linux

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/testkit"
)

// stockDocker builds docker's own client from its Go module, at the version
// that our command line mounts, and returns its path. The module is no Go
// module by its own word: its vendor.mod is a go.mod by another name.
func stockDocker(t *testing.T) string {
	t.Helper()
	testkit.VM(t)
	const module = "github.com/docker/cli"
	dir := goList(t, "-f", "{{.Dir}}", module)
	version := goList(t, "-f", "{{.Version}}", module)
	cache, err := filepath.Abs("../.cache/test")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "docker-"+version, "docker")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	src := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Dir = src
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run("cp", "-r", dir+"/.", ".")
	run("chmod", "-R", "u+w", ".")
	run("rm", "-rf", "vendor")
	run("cp", "vendor.mod", "go.mod")
	run("cp", "vendor.sum", "go.sum")
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	run("go", "build", "-o", bin+".new", "./cmd/docker")
	if err := os.Rename(bin+".new", bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

func goList(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-m"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list -m %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}
