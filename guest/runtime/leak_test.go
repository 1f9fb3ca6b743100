//go:build linux

package runtime_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// world is what containers must leave as it was.
type world struct {
	mounts   string
	cgroups  []string
	children []int
	fds      map[string]int
	state    []string
}

func snapshot(t *testing.T, f *fixture) world {
	t.Helper()
	var w world
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	w.mounts = string(b)
	w.cgroups, _ = filepath.Glob(filepath.Join(cgroupRoot(t), f.parent, "*", "cgroup.procs"))
	w.children = children(t)
	w.fds = map[string]int{}
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(to, "/proc/") {
			// Numbers of sockets and pipes differ.
			kind, _, _ := strings.Cut(to, ":")
			w.fds[kind]++
		}
	}
	w.state, _ = filepath.Glob(filepath.Join(f.state, "*"))
	return w
}

func children(t *testing.T) (l []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatal("no /proc/self/task/*/children")
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for s := range strings.FieldsSeq(string(b)) {
			n, _ := strconv.Atoi(s)
			l = append(l, n)
		}
	}
	slices.Sort(l)
	return l
}

// compare fails the test if anything is left, after a while for what the
// kernel does by itself.
func (w world) compare(t *testing.T, f *fixture) {
	t.Helper()
	var diff string
	for range 50 {
		now := snapshot(t, f)
		switch {
		case now.mounts != w.mounts:
			diff = "mounts:\n" + now.mounts
		case !slices.Equal(now.cgroups, w.cgroups):
			diff = fmt.Sprint("cgroups: ", now.cgroups)
		case len(now.children) != len(w.children):
			diff = fmt.Sprint("processes: ", now.children, ", before ", w.children)
		case !maps.Equal(now.fds, w.fds):
			diff = fmt.Sprint("descriptors: ", now.fds, ", before ", w.fds)
		case !slices.Equal(now.state, w.state):
			diff = fmt.Sprint("state files: ", now.state)
		default:
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left over: %s", diff)
}

// TestNothingIsLeft runs containers that end in every way.
func TestNothingIsLeft(t *testing.T) {
	f := newFixture(t)
	run := func() {
		f.run("ok", f.spec("true"))
		f.run("fails", f.spec("sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit 1"))
		f.run("missing", f.spec("nosuch"))
		s := f.spec("true")
		s.Process.Cwd = "/etc/passwd/x"
		f.run("cwd", s)
		c := f.start("exec", f.spec("sleep", "1000"))
		f.exec(c.Container, nil, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & true")
		_ = c.in.Close()
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	run() // loads the device rules
	before := snapshot(t, f)
	for range 3 {
		run()
	}
	// start's pipes are closed by the test's end
	for kind := range before.fds {
		if kind == "pipe" {
			before.fds[kind] += 3
		}
	}
	before.compare(t, f)
}
