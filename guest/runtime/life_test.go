//go:build linux

package runtime_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/guest/runtime"
	"dhow/guest/runtime/spec"
	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		args     []string
		code     int
		signaled bool
	}{
		"success":         {[]string{"true"}, 0, false},
		"failure":         {[]string{"false"}, 1, false},
		"three":           {[]string{"sh", "-c", "exit 3"}, 3, false},
		"subshell killed": {[]string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 137, false},
	} {
		res := f.run(strings.ReplaceAll(name, " ", "-"), f.spec(c.args...))
		if res.err != nil || res.exit.Code != c.code || res.exit.Signaled != c.signaled {
			t.Errorf("%s: %+v %v", name, res.exit, res.err)
		}
		if time.Since(res.exit.At) > time.Minute {
			t.Errorf("%s: ended at %v", name, res.exit.At)
		}
	}
}

// TestExecErrors: what cannot be executed is told before it is waited for, in
// docker's words and with its exit codes.
func TestExecErrors(t *testing.T) {
	f := newFixture(t)
	f.write("bin/noexec", "#!/bin/sh\n", 0o644)
	f.write("bin/badinterp", "#!/no/such/interpreter\n", 0o755)
	f.write("bin/garbage", "\x00\x01\x02garbage", 0o755)
	for name, c := range map[string]struct {
		code int
		text string
	}{
		"nosuch":         {127, `exec: "nosuch": executable file not found in $PATH`},
		"/bin/nosuch":    {127, `exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory`},
		"/bin/noexec":    {126, `exec: "/bin/noexec": permission denied`},
		"noexec":         {127, `exec: "noexec": executable file not found in $PATH`},
		"/etc":           {126, `exec: "/etc": is a directory`},
		"/bin/badinterp": {127, ""},
		"/bin/garbage":   {126, `exec: "/bin/garbage": exec format error`},
		"":               {127, `exec: "": executable file not found in $PATH`},
	} {
		res := f.run("x", f.spec(name))
		var x *runtime.ExecError
		if !errors.As(res.err, &x) {
			t.Errorf("%s: %v", name, res.err)
			continue
		}
		if x.ExitCode() != c.code || c.text != "" && x.Error() != c.text {
			t.Errorf("%s: exit code %d, %q; want %d, %q", name, x.ExitCode(), x, c.code, c.text)
		}
	}
}

// task is a container that goes on, with pipes to it.
type task struct {
	*runtime.Container
	in  *os.File
	out *bufio.Reader
}

// start creates and starts a container, and has it deleted at the end.
func (f *fixture) start(id string, s *specs.Spec) *task {
	f.tb.Helper()
	ir, iw, err := os.Pipe()
	if err != nil {
		f.tb.Fatal(err)
	}
	or, ow, err := os.Pipe()
	if err != nil {
		f.tb.Fatal(err)
	}
	c, err := f.Create(f.tb.Context(), runtime.CreateConfig{ID: id, Spec: s, IO: runtime.IO{Stdin: ir, Stdout: ow, Stderr: ow}})
	_ = ir.Close()
	_ = ow.Close()
	if err == nil {
		err = c.Start(f.tb.Context())
	}
	if err != nil {
		f.tb.Fatal(err)
	}
	f.tb.Cleanup(func() {
		_ = iw.Close()
		_ = or.Close()
		if err := c.Delete(context.Background()); err != nil {
			f.tb.Error(err)
		}
	})
	return &task{c, iw, bufio.NewReader(or)}
}

// exec runs a program in a container and gives its output and exit code.
func (f *fixture) exec(c *runtime.Container, change func(*specs.Process), args ...string) (string, int) {
	f.tb.Helper()
	p := spec.Default(0).Process
	p.Args = args
	if change != nil {
		change(p)
	}
	r, w, err := os.Pipe()
	if err != nil {
		f.tb.Fatal(err)
	}
	defer r.Close()
	pr, err := c.Exec(f.tb.Context(), runtime.ExecConfig{ID: "exec", Process: p, IO: runtime.IO{Stdout: w, Stderr: w}})
	_ = w.Close()
	if err != nil {
		f.tb.Fatalf("exec %q: %v", args, err)
	}
	b, _ := io.ReadAll(r)
	<-pr.Wait()
	return string(b), pr.Exit().Code
}

func TestStreams(t *testing.T) {
	f := newFixture(t)
	c := f.start("cat", f.spec("cat"))
	if _, err := io.WriteString(c.in, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, _ := c.out.ReadString('\n'); line != "hello\n" {
		t.Errorf("%q", line)
	}
	_ = c.in.Close() // end of input ends cat, if nobody else holds the pipe
	select {
	case <-c.Wait():
	case <-time.After(10 * time.Second):
		t.Fatal("the end of the input does not arrive: the pipe has leaked")
	}
	if c.Exit().Code != 0 {
		t.Errorf("%+v", c.Exit())
	}
}

func TestSignals(t *testing.T) {
	f := newFixture(t)
	c := f.start("trap", f.spec("sh", "-c", "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
	if line, _ := c.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q", line)
	}
	if err := c.Signal(t.Context(), unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	<-c.Wait()
	if e := c.Exit(); e.Code != 7 || e.Signaled {
		t.Errorf("%+v", e)
	}
	if err := c.Signal(t.Context(), unix.SIGTERM, false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("signal to an ended container: %v", err)
	}

	c = f.start("kill", f.spec("sleep", "1000"))
	if err := c.Signal(t.Context(), unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	<-c.Wait()
	if e := c.Exit(); e.Code != 137 || !e.Signaled {
		t.Errorf("%+v", e)
	}

	c = f.start("all", f.spec("sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait"))
	_, _ = c.out.ReadString('\n')
	pids, err := c.Processes()
	if err != nil || len(pids) != 3 {
		t.Errorf("processes %v %v", pids, err)
	}
	if err := c.Signal(t.Context(), unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	<-c.Wait()
	for _, pid := range pids {
		if unix.Kill(pid, 0) == nil && !zombie(pid) {
			t.Errorf("process %d lives", pid)
		}
	}
}

func zombie(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Contains(string(b), ") Z ")
}

func TestPause(t *testing.T) {
	f := newFixture(t)
	c := f.start("count", f.spec("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
	if _, err := c.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	for c.out.Buffered() > 0 {
		_, _ = c.out.ReadString('\n')
	}
	p := spec.Default(0).Process
	p.Args = []string{"true"}
	if _, err := c.Exec(t.Context(), runtime.ExecConfig{Process: p}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("exec in a paused container: %v", err)
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := c.out.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := c.Stats(t.Context()); err != nil || s.CPU.Usage == 0 {
		t.Errorf("stats %+v %v", s.CPU, err)
	}
	// A paused container can be deleted.
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "tty; stty size; ls -l /dev/console; trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.01; done")
	s.Process.ConsoleSize = &specs.Box{Height: 24, Width: 80}
	c, err := f.Create(t.Context(), runtime.CreateConfig{ID: "tty", Spec: s, IO: runtime.IO{Terminal: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Delete(context.Background())
	term := c.Terminal()
	defer term.Close()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(term)
	line := func() string {
		s, err := out.ReadString('\n')
		if err != nil {
			t.Fatalf("%q %v", s, err)
		}
		return strings.TrimRight(s, "\r\n")
	}
	if got := line(); got != "/dev/pts/0" && got != "/dev/console" {
		t.Errorf("tty: %q", got)
	}
	if got := line(); got != "24 80" {
		t.Errorf("size %q", got)
	}
	if got := line(); !strings.HasPrefix(got, "crw") || !strings.Contains(got, "136,   0") {
		t.Errorf("console %q", got)
	}
	if got := line(); got != "ready" {
		t.Fatalf("%q", got)
	}
	if err := c.Resize(100, 30); err != nil {
		t.Fatal(err)
	}
	if got := line(); got != "30 100" {
		t.Errorf("size after the change %q", got)
	}
	<-c.Wait()
	if c.Exit().Code != 5 {
		t.Errorf("%+v", c.Exit())
	}

	// Ctrl-C reaches the foreground group of an exec's terminal.
	d := f.start("d", f.spec("sleep", "1000"))
	p := spec.Default(0).Process
	p.Args = []string{"cat"}
	pr, err := d.Exec(t.Context(), runtime.ExecConfig{ID: "e", Process: p, IO: runtime.IO{Terminal: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Terminal().Close()
	if _, err := pr.Terminal().Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	<-pr.Wait()
	if e := pr.Exit(); e.Code != 130 || !e.Signaled {
		t.Errorf("%+v", e)
	}
	if err := d.Resize(1, 1); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("resize without a terminal: %v", err)
	}
}

func TestExec(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sleep", "1000")
	c := f.start("c", s)
	out, code := f.exec(c.Container, nil, "sh", "-c", "hostname; pwd; id -u; for n in pid mnt net uts ipc cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup | tail -1; exit 4")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 4 || len(lines) != 10 || lines[0] != "box" || lines[1] != "/" || lines[2] != "0" {
		t.Fatalf("%d %q", code, out)
	}
	for i, ns := range []string{"pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		inner, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", c.Pid(), ns))
		if lines[3+i] != inner {
			t.Errorf("%s namespace %s, the container's is %s", ns, lines[3+i], inner)
		}
		if outer, _ := os.Readlink("/proc/self/ns/" + ns); inner == outer {
			t.Errorf("the %s namespace is the machine's", ns)
		}
	}
	if lines[9] != "0::/" {
		t.Errorf("cgroup %q", lines[9])
	}
	if _, code := f.exec(c.Container, nil, "sh", "-c", "kill -9 $$"); code != 137 {
		t.Errorf("killed: %d", code)
	}
	p := spec.Default(0).Process
	p.Args = []string{"nosuch"}
	var x *runtime.ExecError
	if _, err := c.Exec(t.Context(), runtime.ExecConfig{Process: p}); !errors.As(err, &x) || x.ExitCode() != 127 {
		t.Errorf("exec of a missing program: %v", err)
	}
	p.Args, p.Cwd = []string{"true"}, "/no/such"
	var se *runtime.SetupError
	if _, err := c.Exec(t.Context(), runtime.ExecConfig{Process: p}); !errors.As(err, &se) || se.Errno != unix.ENOENT {
		t.Errorf("exec in a missing directory: %v", err)
	}
	// After the first process, no further one.
	_ = c.Signal(t.Context(), unix.SIGKILL, false)
	<-c.Wait()
	p.Cwd = "/"
	if _, err := c.Exec(t.Context(), runtime.ExecConfig{Process: p}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("exec in an ended container: %v", err)
	}
}

// TestExecIntoOwnCgroups: a container that has handed controllers down to
// cgroups of its own cannot have processes in its top one.
func TestExecIntoOwnCgroups(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "mkdir /sys/fs/cgroup/own && echo 1 > /sys/fs/cgroup/own/cgroup.procs && { for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c > /sys/fs/cgroup/cgroup.subtree_control; done; echo ready; exec sleep 1000; }")
	s.Mounts[4].Options = s.Mounts[4].Options[1:] // writable cgroups
	c := f.start("c", s)
	if line, _ := c.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q", line)
	}
	out, code := f.exec(c.Container, nil, "tail", "-1", "/proc/self/cgroup")
	if code != 0 || !strings.HasPrefix(out, "0::/") {
		t.Errorf("%d %q", code, out)
	}
}

func TestInit(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sh", "-c", "trap 'exit 9' TERM; (sleep 0.05 &) ; echo $$; cat /proc/1/comm; while :; do sleep 0.01; done")
	s.Annotations = map[string]string{spec.AnnotationInit: "true"}
	c := f.start("init", s)
	if line, _ := c.out.ReadString('\n'); line == "1\n" {
		t.Error("the program is PID 1 itself")
	}
	if line, _ := c.out.ReadString('\n'); line != "docker-init\n" {
		t.Errorf("PID 1 is %q", line)
	}
	out, _ := f.exec(c.Container, nil, "sh", "-c", "sleep 0.3; grep -E 'Cap(Prm|Eff)|Seccomp:|Threads' /proc/1/status; ls /proc/1/fd; grep -l ') Z' /proc/[0-9]*/stat")
	for _, want := range []string{"CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "Seccomp:\t2", "Threads:\t1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if strings.Contains(out, "/stat") {
		t.Errorf("zombies: %q", out)
	}
	if strings.Contains(out, "\n3\n") {
		t.Errorf("init holds descriptors: %q", out)
	}
	if err := c.Signal(t.Context(), unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	<-c.Wait()
	if c.Exit().Code != 9 {
		t.Errorf("%+v", c.Exit())
	}
	for args, code := range map[string]int{"kill -9 $$": 137, "exit 3": 3} {
		s := f.spec("sh", "-c", args)
		s.Annotations = map[string]string{spec.AnnotationInit: "true"}
		if res := f.run("i", s); res.err != nil || res.exit.Code != code {
			t.Errorf("%s: %+v %v", args, res.exit, res.err)
		}
	}
	s = f.spec("nosuch")
	s.Annotations = map[string]string{spec.AnnotationInit: "true"}
	var x *runtime.ExecError
	if res := f.run("i", s); !errors.As(res.err, &x) {
		t.Errorf("a missing program: %v", res.err)
	}
}

func TestParallelStarts(t *testing.T) {
	f := newFixture(t)
	s := f.spec("echo", "hi")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if res := f.run(fmt.Sprintf("p%d", i), s); res.err != nil || res.out != "hi\n" || res.exit.Code != 0 {
				t.Errorf("%d: %+v", i, res)
			}
		})
	}
	wg.Wait()
}

func TestStatesAndIDs(t *testing.T) {
	f := newFixture(t)
	s := f.spec("sleep", "1000")
	c := f.start("one", s)
	if err := c.Start(t.Context()); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("started twice: %v", err)
	}
	if _, err := f.Create(t.Context(), runtime.CreateConfig{ID: "one", Spec: s}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("created twice: %v", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", ".x", "a\x00", strings.Repeat("x", 300)} {
		if _, err := f.Create(t.Context(), runtime.CreateConfig{ID: id, Spec: s}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
	// Deleted before it was started.
	d, err := f.Create(t.Context(), runtime.CreateConfig{ID: "two", Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	p := spec.Default(0).Process
	p.Args = []string{"true"}
	if _, err := d.Exec(t.Context(), runtime.ExecConfig{Process: p}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("exec before the start: %v", err)
	}
	if err := d.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Start(t.Context()); err == nil {
		t.Error("a deleted container starts")
	}
}

func TestCanceledContext(t *testing.T) {
	f := newFixture(t)
	before := snapshot(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Create(ctx, runtime.CreateConfig{ID: "x", Spec: f.spec("true")}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for d := time.Duration(0); d < 6*time.Millisecond; d += 300 * time.Microsecond {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		c, err := f.Create(ctx, runtime.CreateConfig{ID: "x", Spec: f.spec("true")})
		if err == nil {
			err = c.Start(t.Context())
			<-c.Wait()
			if derr := c.Delete(t.Context()); err != nil || derr != nil {
				t.Error(err, derr)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
	}
	before.compare(t, f)
}

// TestServerDies: a dhow-enter that is gone is replaced.
func TestServerDies(t *testing.T) {
	f := newFixture(t)
	for range 2 {
		if res := f.run("x", f.spec("true")); res.err != nil {
			t.Fatal(res.err)
		}
		for _, pid := range children(t) {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "dhow-enter\n" {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}
