//go:build linux

package runtime_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/guest/runtime"
	"dhow/guest/runtime/seccomp"
	"dhow/guest/runtime/spec"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// need skips the test where it cannot run, or fails it where CI asks that it
// does.
func need(tb testing.TB, ok bool, remedy string) {
	tb.Helper()
	if ok {
		return
	}
	if os.Getenv("CI_REQUIRE_KERNEL") == "1" {
		tb.Fatal(remedy)
	}
	tb.Skip(remedy)
}

// cgroupRoot finds the mount of cgroup2.
func cgroupRoot(tb testing.TB) string {
	for _, p := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(p, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return p
		}
	}
	need(tb, false, "no cgroup2 file system at /sys/fs/cgroup: mount one")
	return ""
}

// fixture is a Runtime with a busybox root file system.
type fixture struct {
	*runtime.Runtime
	tb     testing.TB
	dir    string
	rootfs string
	parent string // cgroup, below the mount
	state  string // state directory
}

var enterBinary string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "dhow-runtime-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		enterBinary = filepath.Join(dir, "dhow-enter")
		if os.Geteuid() == 0 {
			c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", enterBinary, "dhow/cmd/dhow-enter")
			c.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := c.CombinedOutput(); err != nil {
				panic(string(out))
			}
		}
		return m.Run()
	}()
	os.Exit(code)
}

func newFixture(tb testing.TB) *fixture {
	tb.Helper()
	need(tb, os.Geteuid() == 0, "needs root: run as root, e.g. with sudo")
	busybox, err := exec.LookPath("busybox")
	need(tb, err == nil, "needs a static busybox: install the package busybox-static")
	f := &fixture{tb: tb, dir: tb.TempDir(), parent: "dhow-test-" + strings.ReplaceAll(strings.ToLower(tb.Name()), "/", "-")}
	f.rootfs = filepath.Join(f.dir, "rootfs")
	for _, d := range []string{"bin", "etc", "root", "tmp"} {
		if err := os.MkdirAll(filepath.Join(f.rootfs, d), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		tb.Fatal(err)
	}
	f.write("bin/busybox", string(b), 0o755)
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		tb.Fatal(err)
	}
	for _, n := range strings.Fields(string(out)) {
		if n != "busybox" {
			_ = os.Symlink("busybox", filepath.Join(f.rootfs, "bin", n))
		}
	}
	f.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n", 0o644)
	f.write("etc/group", "root:x:0:\nbob:x:1001:\nvideo:x:44:bob\nwheel:x:10:root\n", 0o644)
	root := cgroupRoot(tb)
	f.state = f.stateDir()
	f.Runtime, err = runtime.New(runtime.Options{
		StateDir: f.state, CgroupRoot: root, CgroupParent: f.parent, Enter: enterBinary,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.Close(); err != nil {
			tb.Error(err)
		}
		if err := os.Remove(filepath.Join(root, f.parent)); err != nil {
			tb.Errorf("the parent cgroup is not empty: %v", err)
		}
	})
	return f
}

func (f *fixture) write(name, content string, mode os.FileMode) {
	f.tb.Helper()
	if err := os.WriteFile(filepath.Join(f.rootfs, name), []byte(content), mode); err != nil {
		f.tb.Fatal(err)
	}
}

// spec is docker's default one, with its seccomp profile.
func (f *fixture) spec(args ...string) *specs.Spec {
	f.tb.Helper()
	s := spec.Default(0)
	s.Root.Path = f.rootfs
	s.Process.Args = args
	s.Hostname = "box"
	filter, err := seccomp.Default(s.Process.Capabilities.Bounding)
	if err != nil {
		f.tb.Fatal(err)
	}
	s.Linux.Seccomp = filter
	return s
}

// result is what a finished container leaves.
type result struct {
	out  string
	exit runtime.Exit
	err  error // of Create or Start
}

// run runs a container to its end and deletes it.
func (f *fixture) run(id string, s *specs.Spec, change ...func(*runtime.CreateConfig)) (res result) {
	f.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		f.tb.Fatal(err)
	}
	defer r.Close()
	cc := runtime.CreateConfig{ID: id, Spec: s, IO: runtime.IO{Stdout: w, Stderr: w}}
	for _, ch := range change {
		ch(&cc)
	}
	c, err := f.Create(ctx, cc)
	_ = w.Close()
	if err != nil {
		return result{err: err}
	}
	defer func() {
		if err := c.Delete(ctx); err != nil {
			f.tb.Errorf("delete %s: %v", id, err)
		}
	}()
	if err := c.Start(ctx); err != nil {
		return result{err: err}
	}
	b, _ := io.ReadAll(r)
	select {
	case <-c.Wait():
	case <-ctx.Done():
		f.tb.Fatalf("%s does not end", id)
	}
	return result{out: string(b), exit: c.Exit()}
}

func TestRun(t *testing.T) {
	f := newFixture(t)
	res := f.run("hello", f.spec("sh", "-c", "echo hello; cat /proc/self/status; mount; ls -la /dev; id; hostname; pwd; env; exit 3"))
	if res.err != nil {
		t.Fatal(res.err)
	}
	t.Log(res.out)
	if res.exit.Code != 3 || !strings.HasPrefix(res.out, "hello\n") {
		t.Errorf("exit %+v, output %q", res.exit, res.out)
	}
}

// stateDir is on a tmpfs, as in the product, where there is one.
func (f *fixture) stateDir() string {
	f.tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dhow-state-")
	if err != nil {
		return filepath.Join(f.dir, "state")
	}
	f.tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			f.tb.Error(err)
		}
	})
	return dir
}
